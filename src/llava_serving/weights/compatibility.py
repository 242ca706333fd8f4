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
from .storage.lazy_tensor import num_rows, read_rows
from .supported_config import check_delta_config, check_language_config, check_vision_config
from .tensor_names import PROJECTOR

# The cosine of one matrix in base and delta: above 0.9 for a fine-tuned model, near 0 for a difference.
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
    if vision.kind is not FolderKind.VISION:
        raise StartupError(
            f"{vision.directory} is {vision.description}; the vision tower is openai/clip-vit-large-patch14"
        )
    check_vision_config(vision.checkpoint.config, str(vision.config_file))
    _check_same_rope(base, delta)
    if _cosine(base, delta) > MAX_COSINE:
        raise StartupError(
            f"{delta.directory} is not a delta: its matrices are those of {base.directory}, changed a little; it is "
            "merged already, and needs no base"
        )


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


def _check_same_rope(base: ClassifiedFolder, delta: ClassifiedFolder) -> None:
    base_rope, delta_rope = (rope_parameters(part.checkpoint.config, str(part.config_file)) for part in (base, delta))
    if base_rope != delta_rope:
        raise StartupError(
            f"{base.directory} was trained with the RoPE {base_rope}, and {delta.directory} with {delta_rope}; "
            f"{WRONG_BASE}"
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


def _cosine(base: ClassifiedFolder, delta: ClassifiedFolder) -> float:
    """Compares the first rows of one matrix. Returns 0 if the shapes differ, which `apply_delta` reports better."""
    first, second = (folder.checkpoint.tensors.get(COMPARED_TENSOR) for folder in (base, delta))
    if first is None or second is None or first.shape != second.shape:
        return 0.0
    count = min(COMPARED_ROWS, num_rows(first))
    base_rows, delta_rows = (read_rows(matrix, 0, count).float().flatten() for matrix in (first, second))
    return float(torch.nn.functional.cosine_similarity(base_rows, delta_rows, dim=0))
