"""The results that kernels should give, in float64."""

import torch


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the norm of the difference divided by the norm of `expected`. It is NaN if `actual` contains NaN."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (rows, heads, head size). `cos` and `sin` (rows, head size)."""
    first, second = states.double().chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    return states.double() * cos.double()[..., None, :] + swapped * sin.double()[..., None, :]


def rotary_tables(
    context: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the cosines and sines of LLaMA's positions, each (context, head size)."""
    frequencies = 10000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angles = (torch.arange(context, device=device)[:, None] * frequencies).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    states = states.double()
    return states * (states.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()
