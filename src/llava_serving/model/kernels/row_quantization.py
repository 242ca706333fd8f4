"""Rows rounded to 8 bits, each by its own largest value: `int8_linear.quantize_rows` in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..int8_linear import LARGEST
from .dependent_launch import pdl_options

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_SCALE = tl.constexpr(torch.finfo(torch.float32).tiny)
# Added to a float32 below 2**22 and subtracted again, it rounds the number to the nearest integer, ties to even.
_ROUNDING = tl.constexpr(1.5 * 2**23)


class QuantizedRows(NamedTuple):
    """`values` (rows, size) are int8. Times `scale` (rows,), float32, they are the rounded numbers."""

    values: torch.Tensor
    scale: torch.Tensor


def empty_rows(x: torch.Tensor) -> QuantizedRows:
    """Returns memory for the rounded rows of `x` (rows, size)."""
    return QuantizedRows(x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32))


@triton.jit
def quantize(values):
    """Returns a row of float32 as integers, still in float32, and its scale."""
    # The maximum ignores NaN, and the sum does not: a row with NaN must not look finite.
    scale = (tl.max(tl.abs(values), 0) + 0.0 * tl.sum(values, 0)) / _LARGEST
    rounded = values / tl.maximum(scale, _SMALLEST_SCALE) + _ROUNDING
    return rounded - _ROUNDING, scale


@triton.jit
def _quantize_rows(x, output, scales, ROW_SIZE: tl.constexpr, BLOCK: tl.constexpr, USE_PDL: tl.constexpr):
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * ROW_SIZE
    columns = tl.arange(0, BLOCK)
    mask = columns < ROW_SIZE
    values, scale = quantize(tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32))
    tl.store(output + row + columns, values.to(tl.int8), mask=mask)
    tl.store(scales + tl.program_id(0), scale)


def quantize_rows(x: torch.Tensor) -> QuantizedRows:
    """Rounds `x` (rows, size), contiguous."""
    rows = empty_rows(x)
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    _quantize_rows[(len(x),)](
        x, *rows, ROW_SIZE=size, BLOCK=block, num_warps=8 if block >= 2048 else 4, **pdl_options(x)
    )  # fmt: skip
    return rows
