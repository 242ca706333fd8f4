"""The parts of a LLaVA v0, base, delta and vision tower, as one model whose tensors are still in their files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..inputs.tokenizer import ImageTokens, added_tokens, load_sentencepiece
from .architecture import Architecture, read_architecture
from .compatibility import check_compatible
from .delta import MergedTensor, apply_delta, in_file_order
from .expected_shapes import check_tensors, expected_shapes
from .identity_projector import identity_projection
from .image_tokens import build_image_tokens, image_patch_token
from .model_folder import ClassifiedFolder, classify_folder
from .storage.lazy_tensor import LazyTensor
from .tensor_names import from_clip_name, from_delta_name


@dataclass(frozen=True)
class OpenedParts:
    """The three opened folders as one model. `folders` are base, delta and vision tower.

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
    image_tokens = build_image_tokens(delta, added, patch, architecture.num_patches, architecture.text["vocab_size"])
    base_tensors, delta_tensors, vision_tensors = (folder.checkpoint.tensors for folder in folders)
    language = apply_delta(base_tensors, delta_tensors, sentencepiece.vocab_size())
    tensors = in_file_order({from_delta_name(name): tensor for name, tensor in language.items()})
    tensors |= in_file_order(_vision_tensors(vision_tensors))
    tensors |= identity_projection(architecture.hidden_size)
    check_tensors(tensors, expected_shapes(architecture.text, architecture.vision), "base, delta and vision")
    return OpenedParts(folders, architecture, tensors, sentencepiece, added, image_tokens)


def _vision_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, MergedTensor]:
    return {ours: MergedTensor(tensor) for name, tensor in tensors.items() if (ours := from_clip_name(name))}
