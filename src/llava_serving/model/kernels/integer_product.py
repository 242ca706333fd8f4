"""Linear layers with int8 weights for many rows: cuBLAS multiplies integers, and one launch scales the product."""

import torch
import triton
import triton.language as tl

from .dependent_launch import pdl_options
from .row_quantization import QuantizedRows

BLOCK = 1024


@triton.jit
def _rescale(
    product, row_scales, scales, bias, output,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, APPLY_SWIGLU: tl.constexpr, HAS_BIAS: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    row_scale = tl.load(row_scales + row)
    source = product + row * (2 * SIZE if APPLY_SWIGLU else SIZE) + columns
    result = tl.load(source, mask=mask, other=0).to(tl.float32) * row_scale * tl.load(scales + columns, mask=mask)
    if HAS_BIAS:
        result += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    if APPLY_SWIGLU:
        up = tl.load(source + SIZE, mask=mask, other=0).to(tl.float32) * row_scale
        up *= tl.load(scales + SIZE + columns, mask=mask)
        if HAS_BIAS:
            up += tl.load(bias + SIZE + columns, mask=mask, other=0.0).to(tl.float32)
        result = result * tl.sigmoid(result) * up
    tl.store(output + row * SIZE + columns, result.to(output.dtype.element_ty), mask=mask)


def integer_linear(
    rows: QuantizedRows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype,
    swiglu: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Multiplies `weight` (out, in), int8 with `scale` (out,), with rounded rows. The result is (rows, out) in `dtype`.

    With `swiglu`, the halves of the weight are gate and up, and the result is (rows, out / 2), as in `kernels.linear`.
    `torch._int_mm` needs more than 16 rows, and sizes that are multiples of 8.
    """
    product = torch._int_mm(rows.values, weight.t())
    size = len(weight) // 2 if swiglu else len(weight)
    output = product.new_empty(len(product), size, dtype=dtype)
    _rescale[(len(product), triton.cdiv(size, BLOCK))](
        product, rows.scale, scale, output if bias is None else bias, output, SIZE=size, BLOCK=BLOCK,
        APPLY_SWIGLU=swiglu, HAS_BIAS=bias is not None, **pdl_options(product),
    )  # fmt: skip
    return output
