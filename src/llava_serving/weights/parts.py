"""The parts of a LLaVA v0, base, delta and vision tower, as one model whose tensors are still in their files."""

import logging
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..inputs.templates import TEMPLATES, V0, Template
from ..inputs.tokenizer import IMAGE_START, added_tokens, load_sentencepiece
from .architecture import Architecture, architecture
from .classify import ClassifiedFolder, classify_folder
from .compatibility import check
from .delta import MergedTensor, apply_delta
from .tensor_names import identity_projection, language_name, vision_name

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "conversation_template"  # in a merged folder's config.json
PADDING = "[PAD]"


@dataclass(frozen=True)
class OpenedParts:
    """`merged_tensors` are the model's, by transformers' names, in the order in which the delta's files are read.

    `found` are base, delta and vision tower.
    """

    found: tuple[ClassifiedFolder, ClassifiedFolder, ClassifiedFolder]
    architecture: Architecture
    merged_tensors: dict[str, MergedTensor]
    text: SentencePieceProcessor
    added: dict[str, int]


def open_parts(base: Path, delta: Path, vision: Path) -> OpenedParts:
    """Raises StartupError where a part is not whole or the three do not belong together."""
    found = classify_folder(base), classify_folder(delta), classify_folder(vision)
    check(*found)
    text, added = load_sentencepiece(delta), added_tokens(delta)
    sizes = architecture(delta, vision, text, added)
    of_base, of_delta, of_vision = (part.checkpoint.tensors for part in found)
    language = apply_delta(of_base, of_delta, text.vocab_size())
    merged_tensors = {
        language_name(name): total for name, total in sorted(language.items(), key=lambda item: item[1].first.place)
    }
    for name, tensor in sorted(of_vision.items(), key=lambda item: item[1].place):
        if target := vision_name(name):
            merged_tensors[target] = MergedTensor(tensor)
    merged_tensors |= identity_projection(sizes.hidden_size)
    check_shapes(merged_tensors, sizes.shapes())
    return OpenedParts(found, sizes, merged_tensors, text, added)


def choose_template(asked: str, added: dict[str, int]) -> Template:
    """As asked; "auto" is v0, for no file of a delta says what it was trained with: its authors went by its name.

    Raises StartupError where "auto" is known to be wrong.
    """
    if asked == "auto" and IMAGE_START not in added:
        raise StartupError(
            f"the added tokens ({', '.join(added)}) have no {IMAGE_START}, as LLaVA-13b-delta-v0-science_qa's: its "
            "prompts are not built in; LLAVA_TEMPLATE=v0 or merge --template v0 takes it all the same"
        )
    if asked == "auto" and PADDING not in added:
        logger.warning(
            "the added tokens (%s) have no %s, which training with the v0 template added (LLaVA@15f31eb "
            "llava/train/train.py:580): of a delta named v1, say so with LLAVA_TEMPLATE=v1 or merge --template v1",
            ", ".join(added), PADDING,
        )  # fmt: skip
    return TEMPLATES[V0.name if asked == "auto" else asked]


def check_shapes(merged_tensors: dict[str, MergedTensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises StartupError unless the tensors are those of the model that the configs describe."""
    for name, total in merged_tensors.items():
        if total.first.shape != wanted.get(name):
            raise StartupError(
                f"the tensor {name} has shape {total.first.shape}; by config.json "
                f"{f'it has {wanted[name]}' if name in wanted else 'the model has none'}"
            )
    if missing := sorted(wanted.keys() - merged_tensors.keys()):
        raise StartupError(f"{len(missing)} of the model's tensors are in no file, {missing[0]} among them")
