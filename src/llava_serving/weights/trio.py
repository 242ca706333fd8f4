"""The parts of a LLaVA v0, base, delta and vision tower, as one model whose tensors are still in their files."""

import logging
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..prompt import TEMPLATES, V0, Template
from ..tokenizer import IMAGE_START, added_tokens, load_sentencepiece
from .architecture import Architecture, architecture
from .belonging import check
from .kinds import Found, identify
from .layout import identity_projection, language_name, vision_name
from .merge import Sum, merged

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "conversation_template"  # in a merged folder's config.json
PADDING = "[PAD]"


@dataclass(frozen=True)
class Parts:
    """`sums` are the model's tensors under transformers' names, in the order in which the delta's files are read.

    `found` are base, delta and vision tower.
    """

    found: tuple[Found, Found, Found]
    architecture: Architecture
    sums: dict[str, Sum]
    text: SentencePieceProcessor
    added: dict[str, int]


def open_parts(base: Path, delta: Path, vision: Path) -> Parts:
    """Raises StartupError where a part is not whole or the three do not belong together."""
    found = identify(base), identify(delta), identify(vision)
    check(*found)
    text, added = load_sentencepiece(delta), added_tokens(delta)
    sizes = architecture(delta, vision, text, added)
    of_base, of_delta, of_vision = (part.checkpoint.tensors for part in found)
    language = merged(of_base, of_delta, text.vocab_size())
    sums = {
        language_name(name): total for name, total in sorted(language.items(), key=lambda item: item[1].first.place)
    }
    for name, tensor in sorted(of_vision.items(), key=lambda item: item[1].place):
        if target := vision_name(name):
            sums[target] = Sum(tensor)
    sums |= identity_projection(sizes.hidden_size)
    check_shapes(sums, sizes.shapes())
    return Parts(found, sizes, sums, text, added)


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


def check_shapes(sums: dict[str, Sum], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises StartupError unless the tensors are those of the model that the configs describe."""
    for name, total in sums.items():
        if total.first.shape != wanted.get(name):
            raise StartupError(
                f"the tensor {name} has shape {total.first.shape}; by config.json "
                f"{f'it has {wanted[name]}' if name in wanted else 'the model has none'}"
            )
    if missing := sorted(wanted.keys() - sums.keys()):
        raise StartupError(f"{len(missing)} of the model's tensors are in no file, {missing[0]} among them")
