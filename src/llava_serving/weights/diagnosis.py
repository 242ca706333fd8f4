"""What a folder is, whether it is complete, and whether its numbers are usable."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..inputs.tokenizer import added_tokens, load_sentencepiece
from .delta import MergedTensor, is_recomputed
from .finite_values import count_non_finite
from .layerwise_loss import forward_tensor_names, layerwise_loss
from .merged_checkpoint import empty_merged_model, merged_model_tensors
from .model_folder import DEMO, PARTS, ClassifiedFolder, FolderKind, classify_folder, kind_without_tensors
from .parts import open_parts
from .sentence_loss import SENTENCE, chance_loss, knows_language
from .supported_config import check_delta_config, check_language_config, check_vision_config
from .tensor_names import EMBEDDING, to_llama_name
from .tied_embeddings import check_not_tied


@dataclass(frozen=True)
class Finding:
    """One line of the report. `is_good` is None for a fact that is neither good nor bad."""

    label: str
    text: str
    is_good: bool | None = None


@dataclass(frozen=True)
class LanguageModel:
    """A language model to measure: tensors by LLaMA's names, LLaMA's config, and the folder of the tokenizer."""

    tensors: dict[str, MergedTensor]
    config: dict[str, Any]
    tokenizer: Path
    is_difference: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """The findings on a folder from its headers and configs, its files, its tensors of numbers, and its language model:
    None if it has none or is incomplete.

    `has_published_hashes` says that the folder is of the kind whose MD5s the authors published.
    """

    findings: list[Finding]
    files: list[Path]
    tensors: dict[str, MergedTensor]
    language_model: LanguageModel | None
    has_published_hashes: bool = False


def diagnose(directory: Path) -> Diagnosis:
    """Raises StartupError if a file is damaged or truncated, or if the three parts are incompatible."""
    if kind_without_tensors(directory) is FolderKind.PARTS:
        return _diagnose_parts(directory)
    folder = classify_folder(directory)
    checkpoint = folder.checkpoint
    findings = [Finding("is", folder.description), Finding("size", _size(folder))]
    if added := added_tokens(directory):
        findings.append(_added(added))
    tensors = _tensors_of_numbers(folder)
    try:
        language_model = _complete_language_model(folder)
    except StartupError as error:
        return Diagnosis([*findings, Finding("whole", f"no: {error}", False)], list(checkpoint.files), tensors, None)
    findings.append(Finding("whole", f"yes: {len(checkpoint.tensors)} tensors, every one inside its file", True))
    return Diagnosis(findings, list(checkpoint.files), tensors, language_model, folder.kind is FolderKind.MERGED_V0)


def _diagnose_parts(directory: Path) -> Diagnosis:
    parts = open_parts(*(directory / part for part in PARTS))
    demo = ", the embedded demo model" if directory.resolve() == DEMO else ""
    findings = [Finding("is", f"{FolderKind.PARTS.value}{demo}")]
    files: list[Path] = []
    for part, folder in zip(PARTS, parts.folders, strict=True):
        files += folder.checkpoint.files
        findings.append(Finding(f"{part}/", f"{folder.description}; {_size(folder)}"))
    findings.append(_added(parts.added_tokens))
    findings.append(Finding("whole", "yes: the three are compatible, and every tensor is inside its file", True))
    tensors = {to_llama_name(name): tensor for name, tensor in parts.merged_tensors.items()}
    return Diagnosis(findings, files, tensors, LanguageModel(tensors, parts.architecture.text, directory / "delta"))


def _tensors_of_numbers(folder: ClassifiedFolder) -> dict[str, MergedTensor]:
    """Returns the tensors that a model of the folder computes with. All parts of a LLaVA v0 run in float16."""
    in_float16 = folder.kind is not FolderKind.MERGED
    return {
        name: MergedTensor(tensor, in_float16=in_float16)
        for name, tensor in folder.checkpoint.tensors.items()
        if tensor.dtype.is_floating_point and not is_recomputed(name)
    }


def _added(tokens: dict[str, int]) -> Finding:
    return Finding("adds", ", ".join(f"{token} {token_id}" for token, token_id in sorted(tokens.items())))


def _size(folder: ClassifiedFolder) -> str:
    tensors, files = folder.checkpoint.tensors.values(), len(folder.checkpoint.files)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.dtype.is_floating_point})
    size = f"{folder.checkpoint.num_bytes / 1e9:.2f} GB in {files} file{'s' if files > 1 else ''}"
    return f"{parameters / 1e6:,.1f} M parameters, {', '.join(dtypes)}, {size}"


def _complete_language_model(folder: ClassifiedFolder) -> LanguageModel | None:
    """Returns the folder's language model, or None for a CLIP.

    Raises StartupError if a tensor of the folder's model is missing or has another shape than its config says, or if
    the engine does not compute a setting of the config.
    """
    checkpoint, directory = folder.checkpoint, folder.directory
    if folder.kind is FolderKind.UNKNOWN:
        raise StartupError("this is no part of a LLaVA")
    if folder.kind is FolderKind.MERGED:
        model = empty_merged_model(directory)
        tensors = {to_llama_name(name): t for name, t in merged_model_tensors(checkpoint, model).items()}
        return LanguageModel(tensors, model.config.text_config.to_dict(), directory)
    if folder.kind is FolderKind.VISION:
        config = checkpoint.config.get("vision_config", checkpoint.config)
        names = [f"encoder.layers.{layer}.mlp.fc2.weight" for layer in range(config.get("num_hidden_layers", 0))]
        _check_present(names, [name.removeprefix("vision_model.") for name in checkpoint.tensors])
        check_vision_config(checkpoint.config, str(folder.config_file))
        return None
    check_not_tied(folder)
    _check_present([EMBEDDING, *forward_tensor_names(checkpoint.config)], checkpoint.tensors)
    is_llava = folder.kind in (FolderKind.DELTA, FolderKind.MERGED_V0)
    check_settings = check_delta_config if is_llava else check_language_config
    check_settings(checkpoint.config, str(folder.config_file))
    # Meta's release has one tokenizer for all its sizes, one folder up.
    tokenizer = directory if (directory / "tokenizer.model").is_file() else directory.parent
    tensors = {name: MergedTensor(tensor) for name, tensor in checkpoint.tensors.items()}
    is_difference = folder.kind in (FolderKind.DELTA, FolderKind.DIFFERENCE)
    return LanguageModel(tensors, checkpoint.config, tokenizer, is_difference)


def _check_present(expected: list[str], names: Iterable[str]) -> None:
    present = set(names)
    if missing := [name for name in expected if name not in present]:
        raise StartupError(f"{len(missing)} tensors are missing, {missing[0]} among them")


def find_non_finite(tensors: Mapping[str, MergedTensor]) -> Finding:
    """Reads every tensor, and counts the values that are not finite. Raises StartupError if a file cannot be read."""
    counts = count_non_finite(tensors)
    text = f"no: {counts}" if counts else "yes: no value is NaN or infinite, and none overflows"
    return Finding("finite", text, not counts)


def measure_language(model: LanguageModel) -> Finding:
    """Measures the loss on an ordinary sentence. `is_good` is None if there is no tokenizer, or for a difference."""
    try:
        tokenizer = load_sentencepiece(model.tokenizer)
    except StartupError:
        return Finding("talks", "not measured: the folder has no tokenizer.model")
    vocab_size = model.tensors[EMBEDDING].shape[0]
    loss = layerwise_loss(model.tensors, model.config, [tokenizer.bos_id(), *tokenizer.encode(SENTENCE)])
    talks = knows_language(loss, vocab_size)
    word = "yes" if talks else "no (expected: a delta holds differences)" if model.is_difference else "no"
    chance = chance_loss(vocab_size)
    text = f"{word}: loss {loss:.2f} on an ordinary sentence, where guessing gives {chance:.2f}"
    return Finding("talks", text, talks if talks or not model.is_difference else None)
