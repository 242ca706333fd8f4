"""What kernels should give, in float64."""

import torch


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference by the norm of what is expected. NaN where `got` has any."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (..., heads, head size) by one angle a row."""
    first, second = states.double().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return states.double() * cos.double()[..., None, :] + turned * sin.double()[..., None, :]


def angles(context: int, head_size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of LLaMA's positions, each (context, head size)."""
    frequencies = 10000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    angle = (torch.arange(context, device=device)[:, None] * frequencies).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rms_normed(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    states = states.double()
    return states * (states.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()
