"""What a folder is, and whether all of it is there: from headers and configs, in moments."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..errors import StartupError
from ..inputs.tokenizer import added_tokens, load_sentencepiece
from .architecture import Architecture
from .classify import ClassifiedFolder, classify_folder
from .delta import MergedTensor
from .layerwise_loss import EMBEDDING, layerwise_loss, tensor_names
from .model_dir import DEMO, PARTS
from .parts import check_shapes, open_parts
from .sentence_loss import SENTENCE, chance_loss, knows_language
from .tensor_names import llama_name, model_name


@dataclass(frozen=True)
class Finding:
    """One line of the screen. `good` is None where nothing is good or bad."""

    what: str
    told: str
    good: bool | None = None


@dataclass(frozen=True)
class Language:
    """What it takes to let a model talk: LLaMA's tensors by its names, its config, and its tokenizer's folder."""

    merged_tensors: dict[str, MergedTensor]
    config: dict[str, Any]
    tokenizer: Path
    is_difference: bool = False


@dataclass(frozen=True)
class Diagnosis:
    findings: list[Finding]
    files: list[Path]
    language: Language | None
    is_authors: bool = False  # a merged model in their layout, whose md5 they published


def diagnose(directory: Path) -> Diagnosis:
    """Raises StartupError where the folder or one of its files is not what it must be."""
    if all((directory / part).is_dir() for part in PARTS):
        return _diagnose_trio(directory)
    found = classify_folder(directory)
    findings = [Finding("is", found.name), _size(found)]
    if added := added_tokens(directory):
        findings.append(Finding("adds", ", ".join(f"{token} {i}" for token, i in sorted(added.items()))))
    if problem := _problem(found):
        return Diagnosis([*findings, Finding("whole", f"no: {problem}", False)], list(found.checkpoint.files), None)
    findings.append(Finding("whole", f"yes: {len(found.checkpoint.tensors)} tensors, every one inside its file", True))
    return Diagnosis(findings, list(found.checkpoint.files), _language(found), found.kind == "merged v0")


def _diagnose_trio(directory: Path) -> Diagnosis:
    parts = open_parts(*(directory / part for part in PARTS))
    demo = ", the embedded demo model" if directory.resolve() == DEMO else ""
    findings = [Finding("is", f"the parts of a LLaVA v0, which are merged while loading{demo}")]
    files: list[Path] = []
    for part, found in zip(PARTS, parts.found, strict=True):
        files += found.checkpoint.files
        findings.append(Finding(f"{part}/", f"{found.name}; {_size(found).told}"))
    findings.append(Finding("adds", ", ".join(f"{token} {i}" for token, i in sorted(parts.added.items()))))
    findings.append(Finding("whole", "yes: the three belong together, and every tensor is inside its file", True))
    merged_tensors = {llama_name(name): total for name, total in parts.merged_tensors.items()}
    return Diagnosis(findings, files, Language(merged_tensors, parts.architecture.text, directory / "delta"))


def _size(found: ClassifiedFolder) -> Finding:
    tensors = found.checkpoint.tensors.values()
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.dtype.is_floating_point})
    files = len(found.checkpoint.files)
    size = found.checkpoint.num_bytes / 1e9
    told = f"{parameters / 1e6:,.1f} M parameters, {', '.join(dtypes)}, {size:.2f} GB in {files} file"
    return Finding("size", told + ("s" if files > 1 else ""))


def _problem(found: ClassifiedFolder) -> str | None:
    """What is not there or has another shape than the config says."""
    tensors = found.checkpoint.tensors
    if found.kind == "unknown":
        return "this is no part of a LLaVA"
    if found.kind == "merged":
        try:
            sizes = _architecture(found.directory)
            check_shapes({model_name(name): MergedTensor(tensor) for name, tensor in tensors.items()}, sizes.shapes())
        except StartupError as error:
            return str(error)
        return None
    if found.kind == "vision":
        config = found.checkpoint.config
        layers = config.get("vision_config", config).get("num_hidden_layers", 0)
        return _lacking([f"encoder.layers.{layer}.mlp.fc2.weight" for layer in range(layers)], tensors)
    return _lacking([EMBEDDING, *tensor_names(found.checkpoint.config["num_hidden_layers"])], tensors)


def _lacking(wanted: list[str], there: Iterable[str]) -> str | None:
    there = {name.removeprefix("vision_model.") for name in there}
    missing = [name for name in wanted if name not in there]
    return f"{len(missing)} tensors are missing, {missing[0]} among them" if missing else None


def _language(found: ClassifiedFolder) -> Language | None:
    if found.kind == "vision":
        return None
    tensors, config = found.checkpoint.tensors, found.checkpoint.config
    if found.kind == "merged":
        named = {llama_name(model_name(name)): MergedTensor(tensor) for name, tensor in tensors.items()}
        return Language(named, _architecture(found.directory).text, found.directory)
    is_difference = found.kind in ("delta", "difference")
    # Meta's release has one tokenizer for all its sizes, a folder up.
    here = (found.directory / "tokenizer.model").is_file()
    tokenizer = found.directory if here else found.directory.parent
    return Language({name: MergedTensor(tensor) for name, tensor in tensors.items()}, config, tokenizer, is_difference)


def _architecture(merged: Path) -> Architecture:
    """As transformers reads config.json, which may leave out what is usual."""
    config = AutoConfig.from_pretrained(merged, local_files_only=True)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    return Architecture(text, vision, config.image_token_index, config.vision_feature_layer)


def speak(language: Language) -> Finding:
    """Measures the loss on an ordinary sentence. `good` is None where it cannot be told."""
    try:
        tokenizer = load_sentencepiece(language.tokenizer)
    except StartupError:
        return Finding("talks", "not tried: there is no tokenizer.model with it")
    vocab_size = language.merged_tensors[EMBEDDING].first.shape[0]
    loss = layerwise_loss(language.merged_tensors, language.config, [tokenizer.bos_id(), *tokenizer.encode(SENTENCE)])
    talks = knows_language(loss, vocab_size)
    word = "yes" if talks else "no, as differences do not" if language.is_difference else "no"
    chance = chance_loss(vocab_size)
    told = f"{word}: loss {loss:.2f} on an ordinary sentence, where guessing gives {chance:.2f}"
    return Finding("talks", told, talks if talks or not language.is_difference else None)
