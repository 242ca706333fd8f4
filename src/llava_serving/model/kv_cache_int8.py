"""Keys and values in 8 bits: each has one scale for each token and KV head, its largest absolute number over 127.

Every query reads the rounded keys and values, those of its own token and of its own step too. So a token's attention
does not depend on whether its context was computed in the same step, in an earlier one, for another sequence with the
same prefix, or again after a preemption. The kernels of `kernels` and `cpu_kernels` round in the same way.
"""

import torch

LARGEST = 127
SMALLEST_ABSMAX = 1e-30  # its inverse is finite


def quantize(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `states` (..., head size) in int8, and their scales (...) in float32.

    A scale is not finite if one of its numbers is not, so that the error stays visible.
    """
    numbers = states.float()
    absmax = numbers.abs().amax(-1)
    inverse = torch.full_like(absmax, LARGEST) / absmax.clamp(min=SMALLEST_ABSMAX)
    return (numbers * inverse[..., None]).round_().to(torch.int8), absmax * (1 / LARGEST)


def dequantize(numbers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns int8 `numbers` (..., head size) times their `scales` (...)."""
    return (numbers * scales[..., None]).to(dtype)
