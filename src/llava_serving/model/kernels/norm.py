"""Residual addition and RMSNorm in one launch, with the result rounded to 8 bits if wanted."""

import torch
import triton
import triton.language as tl

from .dependent_launch import pdl_options
from .row_quantization import QuantizedRows, empty_rows, quantize


@triton.jit
def _add_rms_norm(
    residual,
    update,
    weight,
    output,
    scales,
    epsilon,
    ROW_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD_UPDATE: tl.constexpr,
    QUANTIZE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * ROW_SIZE
    columns = tl.arange(0, BLOCK)
    mask = columns < ROW_SIZE
    values = tl.load(residual + row + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD_UPDATE:
        values += tl.load(update + row + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = values.to(residual.dtype.element_ty)
        tl.store(residual + row + columns, rounded, mask=mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / ROW_SIZE + epsilon)
    weights = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    normed = values * scale * weights
    if QUANTIZE:
        normed, row_scale = quantize(normed.to(residual.dtype.element_ty).to(tl.float32))
        tl.store(scales + tl.program_id(0), row_scale)
    tl.store(output + row + columns, normed.to(output.dtype.element_ty), mask=mask)


def add_rms_norm(
    residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Adds `update` to `residual` in place and returns RMSNorm of the sum (Zhang and Sennrich 2019, arXiv:1910.07467).

    Both are (tokens, hidden size), contiguous. Without `update`, the result is RMSNorm of `residual`.
    """
    output = torch.empty_like(residual)
    _launch(residual, update, weight, output, output, epsilon, quantize=False)
    return output


def add_rms_norm_quantized(
    residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> QuantizedRows:
    """Does the same as `add_rms_norm`, and rounds the result to 8 bits."""
    rows = empty_rows(residual)
    _launch(residual, update, weight, rows.values, rows.scale, epsilon, quantize=True)
    return rows


def _launch(
    residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, output: torch.Tensor,
    scales: torch.Tensor, epsilon: float, quantize: bool,
) -> None:  # fmt: skip
    num_tokens, size = residual.shape
    block = triton.next_power_of_2(size)
    _add_rms_norm[(num_tokens,)](
        residual, residual if update is None else update, weight, output, scales, epsilon, ROW_SIZE=size, BLOCK=block,
        ADD_UPDATE=update is not None, QUANTIZE=quantize, num_warps=8 if block >= 2048 else 4, **pdl_options(residual),
    )  # fmt: skip
