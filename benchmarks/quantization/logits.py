"""Errors of the logits of one prompt with a picture, against those in float32.

The model of random_checkpoint.py has random weights. So this measures the error of the arithmetic. It says nothing
about a trained model's loss.
"""

import argparse
from typing import Any

import torch
from PIL import Image
from servers import ROOT

from llava_serving.engine.prompt import PromptImage, SamplingParams
from llava_serving.engine.scheduler import Batch, ScheduledChunk
from llava_serving.engine.sequence import Sequence, random_numbers
from llava_serving.inputs.prompt import ImageSource
from llava_serving.model.kv_cache import BLOCK_SIZE
from llava_serving.service.engine_builder import build_model_runner
from llava_serving.settings import Settings
from llava_serving.weights.model_folder import MergedFolder

from .setting import kv_cache_dtype, linear_bytes, load

REFERENCE = "none/float32"
TEXTS = "Here is a picture that somebody took on a holiday:", "Describe it in two or three sentences, please."
KV_CACHE_GIB = 1.0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = MergedFolder(arguments.model_dir)
    expected, num_bytes = _logits(folder, REFERENCE)
    results = {REFERENCE: {"tokens": len(expected), "linear_bytes": num_bytes}}
    for setting in arguments.settings:
        if setting != REFERENCE:
            logits, num_bytes = _logits(folder, setting)
            results[setting] = {"linear_bytes": num_bytes} | _errors(logits, expected)
    return results


def _logits(folder: MergedFolder, setting: str) -> tuple[torch.Tensor, int]:
    """Returns the logits (tokens, vocabulary) in float32, and the bytes of the linear layers."""
    loaded = load(folder, setting)
    num_bytes = linear_bytes(loaded.model)
    settings = Settings(device="cpu", kv_cache_gib=KV_CACHE_GIB, kv_cache_dtype=kv_cache_dtype(setting))
    runner = build_model_runner(loaded, settings).runner
    encoded = loaded.tokenizer.encode([TEXTS[0], ImageSource("", ""), TEXTS[1]])
    with Image.open(ROOT / "demo" / "pictures" / "shapes.png") as picture:
        pixels = torch.from_numpy(loaded.preprocessor(picture.convert("RGB")))
    image = PromptImage(encoded.image_starts[0], loaded.tokenizer.image.count, b"", pixels)
    seq = Sequence(0, list(encoded.token_ids), (image,), SamplingParams(1), random_numbers(0, 0))
    seq.block_table = list(range(-(-seq.length // BLOCK_SIZE)))
    return runner.logits(Batch([ScheduledChunk(seq, 0, seq.length, True)], seq.block_table)).float(), num_bytes


def _errors(logits: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Returns the relative error of all logits, the largest of a position, and the share of equal arg maxima."""
    rows = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    agreed = logits.argmax(-1) == expected.argmax(-1)
    return {
        "relative_error": round(float((logits - expected).norm() / expected.norm()), 5),
        "largest_of_a_position": round(float(rows.max()), 5),
        "same_argmax": round(float(agreed.float().mean()), 4),
    }
