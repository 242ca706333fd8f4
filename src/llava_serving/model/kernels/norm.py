"""Residual addition and RMSNorm in one launch."""

import torch
import triton
import triton.language as tl

from .dependent_launch import early


@triton.jit
def _add_rms_norm(
    residual,
    update,
    weight,
    output,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(update + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual + row + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / SIZE + epsilon)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row + columns, (values * scale * weights).to(output.dtype.element_ty), mask=inside)


def add_rms_norm(
    residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Adds `update` to `residual` in place and returns RMSNorm of the sum (Zhang and Sennrich 2019, arXiv:1910.07467).

    Both are (tokens, hidden size), contiguous; without `update` the residual is normed as it is.
    """
    output = torch.empty_like(residual)
    tokens, size = residual.shape
    block = triton.next_power_of_2(size)
    _add_rms_norm[(tokens,)](
        residual, residual if update is None else update, weight, output, epsilon, SIZE=size, BLOCK=block,
        ADDS=update is not None, num_warps=8 if block >= 2048 else 4, **early(residual),
    )  # fmt: skip
    return output
