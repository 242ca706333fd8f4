"""Do a base, a delta and a vision tower belong together? Everything that can be told before a merge begins.

What cannot: a Vicuna of 32,000 rows (v1.1 and later) has LLaMA's names, shapes and statistics. Only a config that names
it, or the merged model's babble, gives it away.
"""

import math
from typing import Any

import torch

from ..errors import StartupError
from .classify import ClassifiedFolder
from .delta import PROJECTOR, WRONG_BASE
from .storage.stored_tensor import row_bytes, rows_of

# Of a matrix of the base and its difference: a fine-tuned model's own matrix is above 0.9, a difference's near 0.
LARGEST_COSINE = 0.5
COMPARED = "model.layers.0.mlp.gate_proj.weight"
COMPARED_ROWS = 64
# config.json's name of where a model came from, in small letters, and what it then is.
DESCENDANTS = ("vicuna", "alpaca", "koala", "llava", "llama-2", "llama2")
LLAMA_2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def check(base: ClassifiedFolder, delta: ClassifiedFolder, vision: ClassifiedFolder) -> None:
    """Raises StartupError that says what was found and what to do."""
    if base.kind in ("delta", "merged v0") and delta.kind in ("llama", "difference"):
        raise StartupError(
            f"base and delta are swapped: {base.directory} is {base.name}, {delta.directory} is {delta.name}"
        )
    _check_base(base)
    _check_delta(delta)
    if vision.kind != "vision":
        raise StartupError(f"{vision.directory} is {vision.name}; the vision tower is openai/clip-vit-large-patch14")
    if _cosine(base, delta) > LARGEST_COSINE:
        raise StartupError(
            f"{delta.directory} is not a delta: its matrices are those of {base.directory}, changed a little; it is "
            "merged already, and needs no base"
        )


def _check_base(base: ClassifiedFolder) -> None:
    if base.kind != "llama":
        raise StartupError(f"{base.directory} is {base.name}; {WRONG_BASE}")
    config = base.checkpoint.config
    origin = str(config.get("_name_or_path", "")).lower()
    if named := [name for name in DESCENDANTS if name in origin]:
        raise StartupError(f"{base.directory} comes from {config['_name_or_path']}, a {named[0]}; {WRONG_BASE}")
    if _is_llama_2(config):
        told = ", ".join(f"{key} {config[key]}" for key in LLAMA_2 if key in config)
        raise StartupError(f"{base.directory} is a Llama 2 or later by its config.json ({told}); {WRONG_BASE}")


def _is_llama_2(config: dict[str, Any]) -> bool:
    """The first LLaMA of 7B and 13B has 2048 and 1e-6; of 30B and 65B, 2048 and 1e-5."""
    small = config.get("hidden_size", 0) <= 5120
    long = config.get("max_position_embeddings", 0) >= LLAMA_2["max_position_embeddings"]
    return long or (small and math.isclose(config.get("rms_norm_eps", 1e-6), LLAMA_2["rms_norm_eps"]))


def _check_delta(delta: ClassifiedFolder) -> None:
    tensors = delta.checkpoint.tensors
    deeper = sorted(name for name in tensors if "mm_projector." in name and name not in PROJECTOR)
    if deeper:
        raise StartupError(
            f"{delta.directory} has {deeper[0]}: a projector of several layers, as LLaVA 1.5's, which is no delta"
        )
    if delta.kind in ("llama", "difference"):
        raise StartupError(
            f"{delta.directory} is {delta.name}: LLaVA's delta has {PROJECTOR[0]} (transformers drops it, without a "
            "word, when it saves the delta as a LLaMA)"
        )
    if delta.kind not in ("delta", "merged v0"):
        of = delta.checkpoint.config.get("model_type", "unknown")
        raise StartupError(f"{delta.directory} is {delta.name} (model_type {of!r}), not a LLaVA v0 delta")


def _cosine(base: ClassifiedFolder, delta: ClassifiedFolder) -> float:
    """Of the first rows of one matrix; 0 where there are none alike, which merging tells better."""
    one, other = (found.checkpoint.tensors.get(COMPARED) for found in (base, delta))
    if one is None or other is None or one.shape != other.shape:
        return 0.0
    rows = min(COMPARED_ROWS, rows_of(one))
    first, second = (
        matrix.read(0, rows, torch.empty(rows * row_bytes(matrix), dtype=torch.uint8)).float().flatten()
        for matrix in (one, other)
    )
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))
