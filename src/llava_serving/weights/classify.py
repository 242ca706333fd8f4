"""What a folder holds, told from its names, its tensors and its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import StartupError
from .delta import PROJECTOR
from .storage import meta_layout
from .storage.checkpoint import Checkpoint, open_checkpoint
from .storage.stored_tensor import Tensor, read_whole

Kind = Literal["merged", "llama", "delta", "merged v0", "difference", "vision", "unknown"]
NAMES: dict[Kind, str] = {
    "merged": "a merged LLaVA in Hugging Face layout",
    "llama": "a LLaMA",
    "delta": "a LLaVA v0 delta: differences, which cannot be used directly",
    "merged v0": "a merged LLaVA v0 in its authors' layout, without its CLIP",
    "difference": "a delta without a projector, as Vicuna's are",
    "vision": "a CLIP",
    "unknown": "nothing that is known here",
}
NORM = "model.norm.weight"
# Of all RMSNorm weights: a trained LLaMA's are above zero, differences are as often below.
LEAST_POSITIVE = 0.9


@dataclass(frozen=True)
class ClassifiedFolder:
    kind: Kind
    directory: Path
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        meta = self.kind == "llama" and meta_layout.shards(self.directory)
        return NAMES[self.kind] + (" in Meta's own layout" if meta else "")


def classify_folder(directory: Path) -> ClassifiedFolder:
    """Raises StartupError where the folder's weights are missing, damaged or truncated."""
    checkpoint = open_checkpoint(directory)
    return ClassifiedFolder(_kind(checkpoint), directory, checkpoint)


def _kind(checkpoint: Checkpoint) -> Kind:
    tensors, config = checkpoint.tensors, checkpoint.config
    if config.get("model_type") == "llava" and "vision_config" in config:
        return "merged"
    if any(name in tensors for name in PROJECTOR):
        return "delta" if _is_difference(tensors) else "merged v0"
    if config.get("model_type") == "llama" and NORM in tensors:
        return "difference" if _is_difference(tensors) else "llama"
    if any("vision_model.encoder" in name or name.startswith("encoder.layers") for name in tensors):
        return "vision"
    return "unknown"


def _is_difference(tensors: Mapping[str, Tensor]) -> bool:
    norms = [read_whole(tensor) for name, tensor in tensors.items() if name.endswith("norm.weight")]
    if not norms:
        raise StartupError(f"no norm is among the {len(tensors)} tensors: this is no LLaMA")
    positive = sum(int((norm > 0).sum()) for norm in norms)
    return positive < LEAST_POSITIVE * sum(norm.numel() for norm in norms)
