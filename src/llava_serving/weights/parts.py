"""The parts of a LLaVA v0 as one model whose tensors are still in their files.

The parts are base, delta and vision tower, or a merged model in its authors' layout and the vision tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..inputs.tokenizer import ImageTokens, added_tokens, load_sentencepiece
from .architecture import Architecture, read_architecture
from .compatibility import check_compatible, check_merged_v0
from .delta import MergedTensor, apply_delta, in_file_order, is_recomputed
from .expected_shapes import check_tensors, expected_shapes
from .identity_projector import identity_projection
from .image_tokens import build_image_tokens, image_patch_token
from .model_folder import ClassifiedFolder, classify_folder
from .storage.lazy_tensor import LazyTensor
from .tensor_names import from_clip_name, from_delta_name


@dataclass(frozen=True)
class OpenedParts:
    """The opened folders as one model. `folders` are base, delta and vision tower, or merged model and vision tower.

    `merged_tensors` are named as in the model's state dict, in the order in which the delta's files hold them.
    """

    folders: tuple[ClassifiedFolder, ...]
    architecture: Architecture
    merged_tensors: dict[str, MergedTensor]
    sentencepiece: SentencePieceProcessor
    added_tokens: dict[str, int]
    image_tokens: ImageTokens


def open_parts(base: Path, delta: Path, vision: Path) -> OpenedParts:
    """Opens the three folders. Raises StartupError if one is incomplete or they are incompatible."""
    folders = classify_folder(base), classify_folder(delta), classify_folder(vision)
    check_compatible(*folders)
    sentencepiece = load_sentencepiece(delta)
    base_tensors, delta_tensors = (folder.checkpoint.tensors for folder in folders[:2])
    language = apply_delta(base_tensors, delta_tensors, sentencepiece.vocab_size())
    return _assemble(folders, language, sentencepiece)


def open_merged_v0(merged: Path, vision: Path) -> OpenedParts:
    """Opens a model that the authors' `apply_delta` merged, without its CLIP, and the CLIP. Raises StartupError."""
    folders = classify_folder(merged), classify_folder(vision)
    check_merged_v0(*folders)
    stored = folders[0].checkpoint.tensors
    language = {name: MergedTensor(tensor) for name, tensor in stored.items() if not is_recomputed(name)}
    return _assemble(folders, language, load_sentencepiece(merged))


def _assemble(
    folders: tuple[ClassifiedFolder, ...], language: Mapping[str, MergedTensor], sentencepiece: SentencePieceProcessor
) -> OpenedParts:
    """Puts the language model and projector, by the delta's names, together with the vision tower: the last folder.

    The folder before it has the config and the tokenizer.
    """
    directory, vision = folders[-2].directory, folders[-1]
    added = added_tokens(directory)
    patch = image_patch_token(directory, added)
    architecture = read_architecture(directory, vision.directory, sentencepiece, patch)
    rows: int = architecture.text["vocab_size"]
    image_tokens = build_image_tokens(directory, added, patch, architecture.num_patches, rows)
    tensors = in_file_order({from_delta_name(name): tensor for name, tensor in language.items()})
    tensors |= in_file_order(_vision_tensors(vision.checkpoint.tensors))
    tensors |= identity_projection(architecture.hidden_size)
    source = ", ".join(folder.directory.name for folder in folders)
    check_tensors(tensors, expected_shapes(architecture.text, architecture.vision), source)
    return OpenedParts(folders, architecture, tensors, sentencepiece, added, image_tokens)


def _vision_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, MergedTensor]:
    return {ours: MergedTensor(tensor) for name, tensor in tensors.items() if (ours := from_clip_name(name))}
