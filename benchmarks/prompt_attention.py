"""Attention of a prompt and of a picture on a CPU, the compiled kernels and torch's operator in turns:
python benchmarks/prompt_attention.py --output FILE

The shapes are those of the 1.26 B model (16 heads of 128), of the 13B (40 heads of 128), and of CLIP ViT-L/14 at 224
and 336 pixels (16 heads of 64). GFLOP/s count the products that a causal mask leaves.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from json_file import write_json
from servers import machine
from torch.nn.functional import scaled_dot_product_attention

from llava_serving.model.cpu_kernels.library import compile_kernels
from llava_serving.model.cpu_kernels.prefill_kernels import CPrefillAttention
from llava_serving.model.prefill_attention import SequenceLengths

SHAPES = {
    "prompt, 1.26 B": (300, 16, 128, True),
    "prompt, 13B": (300, 40, 128, True),
    "picture, 224 pixels": (257, 16, 64, False),
    "picture, 336 pixels": (577, 16, 64, False),
}
ROUNDS = 15


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    kernels = CPrefillAttention(compile_kernels())
    results = {
        f"{name}, {str(dtype).removeprefix('torch.')}": _compared(kernels, *shape, dtype)
        for dtype in (torch.bfloat16, torch.float32)
        for name, shape in SHAPES.items()
    }
    write_json(output, {"machine": machine(), "threads": torch.get_num_threads(), "command": sys.argv, **results})


def _compared(
    kernels: CPrefillAttention, tokens: int, heads: int, size: int, is_causal: bool, dtype: torch.dtype
) -> dict[str, Any]:
    query, key, value = torch.randn(tokens, 3 * heads, size).to(dtype).split(heads, 1)
    starts = torch.tensor([0, tokens], dtype=torch.int32)
    lengths = SequenceLengths(starts, starts, [tokens], [tokens])

    def own() -> None:
        if is_causal:
            kernels(query, key, value, lengths)
        else:
            kernels.attend_to_all(query, key, value, tokens, size**-0.5)

    def torchs() -> None:
        transposed = (states.transpose(0, 1)[None] for states in (query, key, value))
        scaled_dot_product_attention(*transposed, is_causal=is_causal)

    times: dict[str, list[float]] = {"kernels": [], "torch": []}
    for _ in range(ROUNDS):
        times["kernels"].append(_milliseconds(own))
        times["torch"].append(_milliseconds(torchs))
    operations = 4 * tokens**2 * size * heads / (2 if is_causal else 1)
    return {
        name: {"median_ms": median(ms), "gflops": round(operations / median(ms) / 1e6), "ms": ms}
        for name, ms in times.items()
    }


def _milliseconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return round((time.perf_counter() - started) * 1e3, 3)


if __name__ == "__main__":
    main()
