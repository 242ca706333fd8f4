"""What a folder holds: the kinds of model folder, how to tell them apart, and the search for the model to serve.

This module imports torch only to read tensors, so that `serve` finds a wrong folder at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StartupError
from ..model_files import missing_hint
from .tensor_names import FINAL_NORM, PROJECTOR

if TYPE_CHECKING:
    from .storage.checkpoint import Checkpoint
    from .storage.lazy_tensor import LazyTensor

PARTS = ("base", "delta", "vision")
DEMO = Path(__file__).resolve().parents[3] / "demo"
MAX_NESTING = 2  # Azure mounts a registered model one or two folders deep
EXPECTED_FOLDERS = (
    "looked, here and up to two folders deep, for one merged LLaVA checkpoint in Hugging Face layout (config.json with "
    '"model_type": "llava" and a vision_config) or a folder with base/ (LLaMA in Hugging Face layout), delta/ and '
    "vision/ (CLIP)"
)
NEEDS_BASE = (
    "a delta cannot be used directly: served without its base it answers nonsense. Put the original LLaMA in base/"
)
# Of all RMSNorm weights. A trained LLaMA's weights are above zero; differences are as often below.
MIN_POSITIVE_SHARE = 0.9


class FolderKind(Enum):
    """A kind of model folder. Its value describes it in messages."""

    PARTS = "the parts of a LLaVA v0, which are merged while loading"
    MERGED = "a merged LLaVA in Hugging Face layout"
    LLAMA = "a LLaMA"
    LLAVA_V0 = "a LLaVA v0 checkpoint in its authors' layout: a delta, or a merged model without its CLIP"
    DELTA = "a LLaVA v0 delta: differences, which cannot be used directly"  # LLAVA_V0, by its tensors
    MERGED_V0 = "a merged LLaVA v0 in its authors' layout, without its CLIP"  # LLAVA_V0, by its tensors
    DIFFERENCE = "a delta without a projector, as Vicuna's are"
    VISION = "a CLIP"
    UNKNOWN = "nothing that is known here"


@dataclass(frozen=True)
class MergedFolder:
    """A folder that transformers loads as LlavaForConditionalGeneration."""

    directory: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that hold weights."""
        return (self.directory,)


@dataclass(frozen=True)
class PartsFolder:
    """A folder whose base/, delta/ and vision/ are merged while loading."""

    directory: Path

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def delta(self) -> Path:
        return self.directory / "delta"

    @property
    def vision(self) -> Path:
        return self.directory / "vision"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that hold weights."""
        return self.base, self.delta, self.vision


SERVED_KINDS: dict[FolderKind, type[MergedFolder] | type[PartsFolder]] = {
    FolderKind.MERGED: MergedFolder,
    FolderKind.PARTS: PartsFolder,
}


@dataclass(frozen=True)
class ClassifiedFolder:
    """An opened checkpoint and its kind, by its config and its tensors."""

    kind: FolderKind
    checkpoint: "Checkpoint"

    @property
    def directory(self) -> Path:
        return self.checkpoint.directory

    @property
    def config_file(self) -> Path:
        return self.directory / ("params.json" if self.checkpoint.is_meta_layout else "config.json")

    @property
    def description(self) -> str:
        return self.kind.value + (" in Meta's own layout" if self.checkpoint.is_meta_layout else "")


def classify_folder(directory: Path) -> ClassifiedFolder:
    """Opens a folder with one checkpoint. Raises StartupError if its weights are missing, damaged or truncated."""
    from .storage.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(directory)
    return ClassifiedFolder(_kind_by_tensors(_kind_by_config(checkpoint.config), checkpoint.tensors), checkpoint)


def kind_without_tensors(directory: Path) -> FolderKind:
    """Returns the kind by config.json and the names of subfolders. Of a LLAVA_V0 the tensors tell more."""
    if all((directory / part).is_dir() for part in PARTS):
        return FolderKind.PARTS
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return FolderKind.UNKNOWN
    return _kind_by_config(config) if isinstance(config, dict) else FolderKind.UNKNOWN


def _kind_by_config(config: Mapping[str, Any]) -> FolderKind:
    if config.get("model_type") == "llava" and "vision_config" in config:
        return FolderKind.MERGED
    if any(key.startswith("mm_") for key in config):
        return FolderKind.LLAVA_V0
    return FolderKind.LLAMA if config.get("model_type") == "llama" else FolderKind.UNKNOWN


def _kind_by_tensors(kind: FolderKind, tensors: "Mapping[str, LazyTensor]") -> FolderKind:
    if kind is FolderKind.MERGED:
        return kind
    if any(name in tensors for name in PROJECTOR):
        return FolderKind.DELTA if _is_difference(tensors) else FolderKind.MERGED_V0
    if kind is not FolderKind.UNKNOWN and FINAL_NORM in tensors:
        return FolderKind.DIFFERENCE if _is_difference(tensors) else FolderKind.LLAMA
    if any("vision_model.encoder" in name or name.startswith("encoder.layers") for name in tensors):
        return FolderKind.VISION
    return FolderKind.UNKNOWN


def _is_difference(tensors: "Mapping[str, LazyTensor]") -> bool:
    from .storage.lazy_tensor import read_whole

    norms = [read_whole(tensor) for name, tensor in tensors.items() if name.endswith("norm.weight")]
    if not norms:
        raise StartupError(f"no norm is among the {len(tensors)} tensors: this is no LLaMA")
    positive = sum(int((norm > 0).sum()) for norm in norms)
    return positive < MIN_POSITIVE_SHARE * sum(norm.numel() for norm in norms)


def find_model(azureml_model_dir: str | None) -> MergedFolder | PartsFolder:
    """Returns the model under AZUREML_MODEL_DIR, or the embedded demo model if that is unset.

    Raises StartupError that says what it looked for and what it found.
    """
    if not azureml_model_dir:
        return PartsFolder(DEMO)
    top = Path(azureml_model_dir)
    if not top.is_dir():
        raise StartupError(f"AZUREML_MODEL_DIR is {top}, which is not a folder; {EXPECTED_FOLDERS}")
    folders = {folder: kind_without_tensors(folder) for folder in _folders(top, MAX_NESTING)}
    found = [SERVED_KINDS[kind](folder) for folder, kind in folders.items() if kind in SERVED_KINDS]
    if len(found) == 1:
        return found[0]
    if found:
        directories = ", ".join(str(model.directory) for model in found)
        raise StartupError(
            f"AZUREML_MODEL_DIR={top} holds more than one model ({directories}); point it at one of them"
        )
    raise StartupError(f"no model in AZUREML_MODEL_DIR={top}: {EXPECTED_FOLDERS}; found {_describe(folders)}")


def _folders(top: Path, depth: int) -> list[Path]:
    children = sorted(child for child in top.iterdir() if child.is_dir()) if depth else []
    return [top, *(folder for child in children for folder in _folders(child, depth - 1))]


def _describe(folders: Mapping[Path, FolderKind]) -> str:
    """Names a wrong model if it is one that people often bring, otherwise the files of the first folder."""
    for folder, kind in folders.items():
        if present := [part for part in PARTS if (folder / part).is_dir()]:
            missing = [part for part in PARTS if part not in present]
            why = f"; {NEEDS_BASE}" if "base" in missing else ""
            return f"{folder} with {'/, '.join(present)}/ but without {'/, '.join(missing)}/{why}"
        if kind is FolderKind.LLAVA_V0:
            return f"{folder}, {kind.value}; {NEEDS_BASE}, or convert a merged model: llava-serving merge --merged"
        if kind is FolderKind.LLAMA:
            return f"{folder}, a LLaMA checkpoint alone; put it in base/ beside delta/ and vision/"
        if hint := missing_hint(folder / "config.json"):
            return f"{folder} without its config.json{hint}"
    names = sorted(path.name for path in next(iter(folders)).iterdir())
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "an empty folder"
