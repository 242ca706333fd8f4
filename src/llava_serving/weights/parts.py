"""The parts of a LLaVA v0, base, delta and vision tower, as one model whose tensors are still in their files."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..inputs.templates import TEMPLATES, V0, Template
from ..inputs.tokenizer import IMAGE_START, ImageTokens, added_tokens, load_sentencepiece
from .architecture import Architecture, read_architecture
from .compatibility import check_compatible
from .delta import MergedTensor, apply_delta
from .expected_shapes import check_tensors, expected_shapes
from .identity_projector import identity_projection
from .image_tokens import check_image_tokens, image_patch_token
from .model_folder import ClassifiedFolder, classify_folder
from .storage.lazy_tensor import LazyTensor
from .tensor_names import from_clip_name, from_delta_name

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "conversation_template"  # in a merged folder's config.json
PADDING = "[PAD]"


@dataclass(frozen=True)
class OpenedParts:
    """`folders` are base, delta and vision tower.

    `merged_tensors` are named as in the model's state dict, in the order in which the delta's files hold them.
    """

    folders: tuple[ClassifiedFolder, ClassifiedFolder, ClassifiedFolder]
    architecture: Architecture
    merged_tensors: dict[str, MergedTensor]
    sentencepiece: SentencePieceProcessor
    added_tokens: dict[str, int]
    image_tokens: ImageTokens


def open_parts(base: Path, delta: Path, vision: Path) -> OpenedParts:
    """Opens the three folders. Raises StartupError if one is incomplete or they are incompatible."""
    folders = classify_folder(base), classify_folder(delta), classify_folder(vision)
    check_compatible(*folders)
    sentencepiece, added = load_sentencepiece(delta), added_tokens(delta)
    patch = image_patch_token(delta, added)
    architecture = read_architecture(delta, vision, sentencepiece, patch)
    image_tokens = check_image_tokens(delta, added, patch, architecture.num_patches, architecture.text["vocab_size"])
    base_tensors, delta_tensors, vision_tensors = (folder.checkpoint.tensors for folder in folders)
    language = apply_delta(base_tensors, delta_tensors, sentencepiece.vocab_size())
    tensors = {from_delta_name(name): tensor for name, tensor in language.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].stored.location))
    tensors |= _vision_tensors(vision_tensors) | identity_projection(architecture.hidden_size)
    shapes = expected_shapes(architecture.text, architecture.vision)
    check_tensors(tensors, shapes, "base, delta and vision")
    return OpenedParts(folders, architecture, tensors, sentencepiece, added, image_tokens)


def _vision_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, MergedTensor]:
    in_order = sorted(tensors.items(), key=lambda item: item[1].location)
    return {ours: MergedTensor(tensor) for name, tensor in in_order if (ours := from_clip_name(name))}


def choose_template(requested: str, added: dict[str, int]) -> Template:
    """Returns the requested template; "auto" is v0.

    No file of a delta names the template that it was trained with: its authors went by the delta's name. Raises
    StartupError if "auto" is known to be wrong.
    """
    if requested == "auto" and IMAGE_START not in added:
        raise StartupError(
            f"the added tokens ({', '.join(added)}) have no {IMAGE_START}, as LLaVA-13b-delta-v0-science_qa's: its "
            "prompts are not built in; LLAVA_TEMPLATE=v0 or merge --template v0 takes it all the same"
        )
    if requested == "auto" and PADDING not in added:
        logger.warning(
            "the added tokens (%s) have no %s, which training with the v0 template added (LLaVA@15f31eb "
            "llava/train/train.py:580): for a delta named v1, set LLAVA_TEMPLATE=v1 or merge --template v1",
            ", ".join(added), PADDING,
        )  # fmt: skip
    return TEMPLATES[V0.name if requested == "auto" else requested]
