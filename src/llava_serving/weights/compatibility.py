"""Checks before a merge begins that a base, a delta and a vision tower are compatible.

One mistake stays hidden: a Vicuna of 32,000 rows (v1.1 and later) has LLaMA's names, shapes and statistics. Only a
config that names it, or nonsense from the merged model, reveals it.
"""

import math
from typing import Any

import torch

from ..errors import StartupError
from .delta import WRONG_BASE
from .model_folder import ClassifiedFolder, FolderKind
from .rope_settings import rope_parameters
from .storage.lazy_tensor import LazyTensor, num_rows, read_rows, read_whole
from .supported_config import check_delta_config, check_language_config, check_vision_config
from .tensor_names import EMBEDDING, PROJECTOR
from .tied_embeddings import check_not_tied

# The sum of all norms' absolute weights in the delta, as a share of the base's: near 1 for a merged model, whatever its
# matrices are, and near 0 for a difference (0.24 in the demo, which was trained for minutes).
MAX_NORM_SHARE = 0.5
# The cosine of one matrix in base and delta: near 0 for the original LLaMA and its delta.
MAX_COSINE = 0.5
COMPARED_TENSOR = "model.layers.0.mlp.gate_proj.weight"
COMPARED_ROWS = 64
# Words in config.json's `_name_or_path` (the model's origin, here in small letters) that exclude the original LLaMA.
DESCENDANTS = ("vicuna", "alpaca", "koala", "llava", "llama-2", "llama2")
LLAMA_2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

_NOT_DELTAS = (FolderKind.LLAMA, FolderKind.DIFFERENCE)
_LLAVA_V0 = (FolderKind.DELTA, FolderKind.MERGED_V0)


def check_compatible(base: ClassifiedFolder, delta: ClassifiedFolder, vision: ClassifiedFolder) -> None:
    """Raises StartupError that says what was found and what to do."""
    if base.kind in _LLAVA_V0 and delta.kind in _NOT_DELTAS:
        raise StartupError(
            f"base and delta are swapped: {base.directory} is {base.description}, {delta.directory} is "
            f"{delta.description}"
        )
    _check_base(base)
    _check_delta(delta)
    _check_vision(vision)
    _check_same_rope(base, delta)
    _check_not_merged(base, delta)


def check_merged_v0(merged: ClassifiedFolder, vision: ClassifiedFolder) -> None:
    """Raises StartupError unless the folders are a merged LLaVA v0 in its authors' layout and a CLIP."""
    if merged.kind is FolderKind.MERGED:
        raise StartupError(f"{merged.directory} is {merged.description}, which needs no merge: serve it as it is")
    if merged.kind is not FolderKind.MERGED_V0:
        raise StartupError(
            f"{merged.directory} is {merged.description}; --merged takes {FolderKind.MERGED_V0.value}, as apply_delta "
            "wrote it"
        )
    _check_delta(merged)
    _check_vision(vision)


def _check_vision(vision: ClassifiedFolder) -> None:
    if vision.kind is not FolderKind.VISION:
        raise StartupError(
            f"{vision.directory} is {vision.description}; the vision tower is openai/clip-vit-large-patch14"
        )
    check_vision_config(vision.checkpoint.config, str(vision.config_file))


def _check_base(base: ClassifiedFolder) -> None:
    if base.kind is not FolderKind.LLAMA:
        raise StartupError(f"{base.directory} is {base.description}; {WRONG_BASE}")
    config = base.checkpoint.config
    origin = str(config.get("_name_or_path", "")).lower()
    if descendants := [name for name in DESCENDANTS if name in origin]:
        raise StartupError(f"{base.directory} comes from {config['_name_or_path']}, a {descendants[0]}; {WRONG_BASE}")
    if _is_llama_2(config):
        reason = ", ".join(f"{key} {config[key]}" for key in LLAMA_2 if key in config)
        raise StartupError(f"{base.directory} is a Llama 2 or later by its config.json ({reason}); {WRONG_BASE}")
    check_language_config(config, str(base.config_file))
    check_not_tied(base)


def _check_same_rope(base: ClassifiedFolder, delta: ClassifiedFolder) -> None:
    base_rope, delta_rope = (rope_parameters(part.checkpoint.config, str(part.config_file)) for part in (base, delta))
    if base_rope != delta_rope:
        raise StartupError(
            f"{base.directory} was trained with the RoPE {base_rope}, and {delta.directory} with {delta_rope}; "
            f"{WRONG_BASE}"
        )


def _check_not_merged(base: ClassifiedFolder, delta: ClassifiedFolder) -> None:
    """The norms tell a merged model from a difference. So they also tell which of two similar folders is the wrong."""
    if _norm_share(base, delta) > MAX_NORM_SHARE:
        raise StartupError(
            f"{delta.directory} is not a delta: its norms are as large as those of {base.directory}; it is merged "
            "already, and needs no base: `llava-serving merge --merged` converts it"
        )
    if _holds_added_rows(base, delta) or _cosine(base, delta) > MAX_COSINE:
        raise StartupError(
            f"{base.directory} is merged already: it holds the delta of {delta.directory}, which would be added a "
            f"second time; {WRONG_BASE}"
        )


def _is_llama_2(config: dict[str, Any]) -> bool:
    """Compares with LLAMA_2. The first LLaMA of 7B and 13B has 2048 and 1e-6, of 30B and 65B 2048 and 1e-5."""
    is_small = config.get("hidden_size", 0) <= 5120
    has_long_context = config.get("max_position_embeddings", 0) >= LLAMA_2["max_position_embeddings"]
    has_epsilon = math.isclose(config.get("rms_norm_eps", 1e-6), LLAMA_2["rms_norm_eps"])
    return has_long_context or (is_small and has_epsilon)


def _check_delta(delta: ClassifiedFolder) -> None:
    tensors = delta.checkpoint.tensors
    deeper = sorted(name for name in tensors if "mm_projector." in name and name not in PROJECTOR)
    if deeper:
        raise StartupError(
            f"{delta.directory} has {deeper[0]}: a projector of several layers, as LLaVA 1.5's, which is no delta"
        )
    if delta.kind in _NOT_DELTAS:
        raise StartupError(
            f"{delta.directory} is {delta.description}: LLaVA's delta has {PROJECTOR[0]} (transformers drops it, "
            "without a word, when it saves the delta as a LLaMA)"
        )
    if delta.kind not in _LLAVA_V0:
        model_type = delta.checkpoint.config.get("model_type", "unknown")
        raise StartupError(
            f"{delta.directory} is {delta.description} (model_type {model_type!r}), not a LLaVA v0 delta"
        )
    check_delta_config(delta.checkpoint.config, str(delta.config_file))
    check_not_tied(delta)


def _norm_share(base: ClassifiedFolder, delta: ClassifiedFolder) -> float:
    """Returns 0 if the shapes differ, which `apply_delta` reports better."""
    norms = [name for name in base.checkpoint.tensors if name.endswith("norm.weight")]
    pairs = [_pair(base, delta, name) for name in norms]
    if not pairs or None in pairs:
        return 0.0
    base_sum, delta_sum = (
        sum(float(read_whole(pair[part]).float().abs().sum()) for pair in pairs if pair) for part in (0, 1)
    )
    return delta_sum / base_sum


def _holds_added_rows(base: ClassifiedFolder, delta: ClassifiedFolder) -> bool:
    """Says whether the embeddings end with the same row: a delta stores the added tokens' rows as they are."""
    pair = _pair(base, delta, EMBEDDING)
    if pair is None:
        return False
    last_rows = [read_rows(matrix, num_rows(matrix) - 1, num_rows(matrix)).half() for matrix in pair]
    return torch.equal(*last_rows)


def _pair(base: ClassifiedFolder, delta: ClassifiedFolder, name: str) -> tuple[LazyTensor, LazyTensor] | None:
    """Returns a tensor of both, or None if one lacks it or their shapes differ."""
    first, second = (folder.checkpoint.tensors.get(name) for folder in (base, delta))
    return None if first is None or second is None or first.shape != second.shape else (first, second)


def _cosine(base: ClassifiedFolder, delta: ClassifiedFolder) -> float:
    """Compares the first rows of one matrix. Returns 0 if the shapes differ, which `apply_delta` reports better."""
    pair = _pair(base, delta, COMPARED_TENSOR)
    if pair is None:
        return 0.0
    count = min(COMPARED_ROWS, num_rows(pair[0]))
    base_rows, delta_rows = (read_rows(matrix, 0, count).float().flatten() for matrix in pair)
    return float(torch.nn.functional.cosine_similarity(base_rows, delta_rows, dim=0))
