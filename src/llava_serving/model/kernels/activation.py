"""SiLU of the gate times the up projection in one launch."""

import torch
import triton
import triton.language as tl

from .dependent_launch import pdl_options

BLOCK = 1024


@triton.jit
def _silu_product(gate_up, output, SIZE: tl.constexpr, BLOCK: tl.constexpr, USE_PDL: tl.constexpr):
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + row * SIZE + columns, (gate * tl.sigmoid(gate) * up).to(output.dtype.element_ty), mask=mask)


def silu_product(gate_up: torch.Tensor) -> torch.Tensor:
    """Maps (tokens, 2 * size), gate before up, to (tokens, size): SwiGLU (Shazeer 2020, arXiv:2002.05202)."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_tokens, size)
    grid = num_tokens, triton.cdiv(size, BLOCK)
    _silu_product[grid](gate_up, output, SIZE=size, BLOCK=BLOCK, **pdl_options(gate_up))
    return output
