"""Whether the compiled kernels or torch's operators compute layers in bfloat16, by a short measurement at start.

Torch's operators use the instructions that multiply whole tiles in bfloat16 (AMX), where a processor has them. The
kernels do not, and read a weight faster.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import nn
from torch.nn.functional import linear

from .cpu_linear import CpuLinear
from .packed_weight import NumberFormat

logger = logging.getLogger(__name__)
SIZE = 2048  # features of the layers that are measured, 8 MiB each
LAYERS = 4  # so many that a processor's cache does not hold them from one repetition to the next
PROMPT_TOKENS, ANSWER_TOKENS = 256, 64  # of the chat whose time decides
REPETITIONS = 3

Product = Callable[[torch.Tensor], torch.Tensor]


@cache
def packed_is_faster() -> bool:
    """Returns whether packed layers compute a prompt and its answer faster than torch's. Takes about 0.2 s."""
    module = nn.Linear(SIZE, SIZE, bias=False, device="meta")
    packed = [CpuLinear.empty_fused([module], NumberFormat.BFLOAT16)[0] for _ in range(LAYERS)]
    matrices = [torch.zeros(SIZE, SIZE, dtype=torch.bfloat16) for _ in range(LAYERS)]
    own, torchs = _chat_seconds(packed), _chat_seconds([partial(_product, matrix) for matrix in matrices])
    logger.info(
        "bfloat16 layers: %s compute them; a chat takes %.1f ms in a small layer, and with %s %.1f ms",
        *("the compiled kernels", own * 1e3, "torch's operators", torchs * 1e3) if own < torchs
        else ("torch's operators", torchs * 1e3, "the compiled kernels", own * 1e3),
    )  # fmt: skip
    return own < torchs


def _product(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return linear(states, weight)


@torch.inference_mode()
def _chat_seconds(layers: Sequence[Product]) -> float:
    """Returns the seconds that a prompt and its answer take in one layer."""
    return _seconds(layers, PROMPT_TOKENS) + ANSWER_TOKENS * _seconds(layers, 1)


def _seconds(layers: Sequence[Product], rows: int) -> float:
    """Returns the shortest time of a layer, because others' work on the machine can only lengthen it."""
    states, times = torch.zeros(rows, SIZE, dtype=torch.bfloat16), []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        for layer in layers:
            layer(states)
        times.append((time.perf_counter() - started) / len(layers))
    return min(times)
