"""Linear layers for few rows of input, with the operations before and after them in the same launch.

A decode step reads every weight once, and with few rows cuBLAS leaves a tenth of the bandwidth unused (measured on an
H100, see benchmarks/README.md). These kernels apply RMSNorm to a single row while they read it, and they add their
output to the residual or apply SwiGLU to it. Weights may be int8 with a scale per output feature: they are converted
in registers, the input is not rounded, and the scale is applied to the sum.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from ..int8_linear import MAX_EXACT_ROWS
from .dependent_launch import pdl_options
from .norm import add_rms_norm

LARGE_SHARED_MEMORY = (9, 0)
# One row uses dot products on plain cores. Up to this many rows are padded to 16 and use tensor cores, from sm_80 on.
MAX_ROWS = 16
# The same for int8 weights: the rows whose values stay as they are, in tiles of 16 or of 64.
MAX_INT8_ROWS = MAX_EXACT_ROWS
TILE_N = 64
# Columns that a program of `_one_row` reads at once. On an H100 a step of one sequence takes 9.5 ms with 512, 9.3 with
# 1,024 and 9.0 with 2,048.
CHUNK = 2048
# From this many output features on, one feature per program fills the device. With fewer, a program computes two, which
# share the loads of the input row.
MANY_FEATURES = 8192
# Of shared memory, for the tiles of `_few_rows` with int8 weights. Of the rest, Triton needs some itself.
INT8_TILE_BYTES_LARGE, INT8_TILE_BYTES, MAX_STAGES = 208 * 1024, 96 * 1024, 8


def _tile_k_and_stages(device: torch.device, item_bytes: int) -> tuple[int, int, int]:
    """Returns the columns of a tile of `_few_rows`, and its number of pipeline stages with SwiGLU and without.

    They use as much shared memory as there is. On sm_90 this is 227 KiB: a step of 16 sequences takes 12.4 ms with half
    as much and 11.9 ms with this. On the smallest devices from sm_80 on it is 99 KiB.
    """
    if _has_large_shared_memory(device):
        return 512 // item_bytes, 3, 4
    return 256 // item_bytes, 2, 4


def int8_tile_k_and_stages(large_memory: bool, item_bytes: int, tile_m: int, swiglu: bool) -> tuple[int, int]:
    """Returns the same for int8 weights: more stages instead of longer tiles, so that as many bytes are on their way.

    No GPU has measured these sizes yet.
    """
    # With SwiGLU, two weights in tiles of 256 columns would take all registers.
    tile_k = 256 if large_memory and tile_m == MAX_ROWS and not swiglu else 128
    stage_bytes = tile_k * (TILE_N * (2 if swiglu else 1) + tile_m * item_bytes)
    return tile_k, min(MAX_STAGES, (INT8_TILE_BYTES_LARGE if large_memory else INT8_TILE_BYTES) // stage_bytes)


@cache
def _has_large_shared_memory(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LARGE_SHARED_MEMORY


@triton.jit
def _one_row(
    x, norm, weight, scales, bias, output, epsilon, N,
    K: tl.constexpr, FEATURES: tl.constexpr, CHUNK: tl.constexpr, EVEN_K: tl.constexpr,
    APPLY_NORM: tl.constexpr, APPLY_SWIGLU: tl.constexpr, ADD_TO_OUTPUT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    n_mask = n < N
    columns = tl.arange(0, CHUNK)
    weight_row = weight + n[:, None].to(tl.int64) * K + columns[None, :]
    up_row = weight_row + N.to(tl.int64) * K
    products = tl.zeros([FEATURES, CHUNK], tl.float32)
    up_products = tl.zeros([FEATURES, CHUNK], tl.float32)
    squares = tl.zeros([CHUNK], tl.float32)
    # No kernel writes the weights, so their first chunk is loaded before the previous kernel has ended.
    mask = n_mask[:, None] & (columns < K)[None, :]
    weights = tl.load(weight_row, mask=mask, other=0)
    if APPLY_SWIGLU:
        up = tl.load(up_row, mask=mask, other=0)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    for k in tl.static_range(0, K, CHUNK):
        if k > 0:
            k_mask = (k + columns < K) if not EVEN_K else (columns < CHUNK)
            mask = n_mask[:, None] & k_mask[None, :]
            weights = tl.load(weight_row + k, mask=mask, other=0)
            if APPLY_SWIGLU:
                up = tl.load(up_row + k, mask=mask, other=0)
        k_mask = k + columns < K
        values = tl.load(x + k + columns, mask=k_mask, other=0.0).to(tl.float32)
        if APPLY_NORM:
            squares += values * values
            values *= tl.load(norm + k + columns, mask=k_mask, other=0.0).to(tl.float32)
        products += weights.to(tl.float32) * values[None, :]
        if APPLY_SWIGLU:
            up_products += up.to(tl.float32) * values[None, :]
    result = tl.sum(products, 1)
    if HAS_SCALE:
        result *= tl.load(scales + n, mask=n_mask, other=0.0)
    if APPLY_NORM:
        norm_scale = tl.rsqrt(tl.sum(squares, 0) / K + epsilon)
        result *= norm_scale
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)
    if APPLY_SWIGLU:
        up_result = tl.sum(up_products, 1)
        if HAS_SCALE:
            up_result *= tl.load(scales + N + n, mask=n_mask, other=0.0)
        if APPLY_NORM:
            up_result *= norm_scale
        if HAS_BIAS:
            up_result += tl.load(bias + N + n, mask=n_mask, other=0.0).to(tl.float32)
        result = result * tl.sigmoid(result) * up_result
    if ADD_TO_OUTPUT:
        # cuBLAS rounds the product before torch adds it, and so does this kernel.
        result = result.to(output.dtype.element_ty).to(tl.float32)
        result += tl.load(output + n, mask=n_mask, other=0.0).to(tl.float32)
    tl.store(output + n, result.to(output.dtype.element_ty), mask=n_mask)


@triton.jit(do_not_specialize=["M"])
def _few_rows(
    x, weight, scales, bias, output, M, N,
    K: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
    APPLY_SWIGLU: tl.constexpr, ADD_TO_OUTPUT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    m = tl.arange(0, TILE_M)
    columns = tl.arange(0, TILE_K)
    n_mask, m_mask = n < N, m < M
    weight_rows = weight + n[:, None].to(tl.int64) * K + columns[None, :]
    x_rows = x + m[None, :] * K + columns[:, None]
    result = tl.zeros([TILE_N, TILE_M], tl.float32)
    up_result = tl.zeros([TILE_N, TILE_M], tl.float32)
    for k in range(0, K, TILE_K):
        k_mask = (k + columns < K) if not EVEN_K else (columns < TILE_K)
        mask = n_mask[:, None] & k_mask[None, :]
        values = tl.load(x_rows + k, mask=m_mask[None, :] & k_mask[:, None], other=0.0)
        weights = tl.load(weight_rows + k, mask=mask, other=0).to(values.dtype)
        result = tl.dot(weights, values, result, input_precision=PRECISION)
        if APPLY_SWIGLU:
            up = tl.load(weight_rows + k + N.to(tl.int64) * K, mask=mask, other=0).to(values.dtype)
            up_result = tl.dot(up, values, up_result, input_precision=PRECISION)
    if HAS_SCALE:
        result *= tl.load(scales + n, mask=n_mask, other=0.0)[:, None]
        if APPLY_SWIGLU:
            up_result *= tl.load(scales + N + n, mask=n_mask, other=0.0)[:, None]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[:, None]
    if APPLY_SWIGLU:
        if HAS_BIAS:
            up_result += tl.load(bias + N + n, mask=n_mask, other=0.0).to(tl.float32)[:, None]
        result = result * tl.sigmoid(result) * up_result
    pointers = output + m[None, :].to(tl.int64) * N + n[:, None]
    mask = n_mask[:, None] & m_mask[None, :]
    if ADD_TO_OUTPUT:
        result = result.to(output.dtype.element_ty).to(tl.float32)
        result += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointers, result.to(output.dtype.element_ty), mask=mask)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    swiglu: bool = False,
    add_to: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies `weight` (out, in) with each of at most MAX_ROWS rows of `x` (rows, in).

    With `norm`, RMSNorm is applied to the rows first. With `swiglu`, the halves of the weight are gate and up, and the
    result is (rows, out / 2): SiLU of the gate times up. With `add_to` (rows, out), the result is added to it in place.
    With `scale` (out,), float32, the weight is int8, and there may be MAX_INT8_ROWS rows.
    """
    rows, in_features = x.shape
    out_features = len(weight) // 2 if swiglu else len(weight)
    if norm is not None and rows > 1:
        x, norm = add_rms_norm(x, None, norm, epsilon), None
    output = x.new_empty(rows, out_features) if add_to is None else add_to
    flags = {
        "APPLY_SWIGLU": swiglu, "ADD_TO_OUTPUT": add_to is not None, "HAS_BIAS": bias is not None,
        "HAS_SCALE": scale is not None, **pdl_options(x),
    }  # fmt: skip
    bias_or_any, scale_or_any = x if bias is None else bias, x if scale is None else scale
    if rows == 1:
        # Two features of int8 are as many bytes as one of 16 bits.
        features = 1 if scale is None and out_features >= MANY_FEATURES else 2
        _one_row[(triton.cdiv(out_features, features),)](
            x, x if norm is None else norm, weight, scale_or_any, bias_or_any, output, epsilon, out_features,
            K=in_features, FEATURES=features, CHUNK=CHUNK, EVEN_K=in_features % CHUNK == 0,
            APPLY_NORM=norm is not None, **flags, num_warps=4,
        )  # fmt: skip
    else:
        tile_m, tile_k, stages = _tiles(x, swiglu, scale is not None)
        _few_rows[(triton.cdiv(out_features, TILE_N),)](
            x, weight, scale_or_any, bias_or_any, output, rows, out_features, K=in_features, TILE_M=tile_m,
            TILE_N=TILE_N, TILE_K=tile_k, EVEN_K=in_features % tile_k == 0, **flags,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=4, num_stages=stages,
        )  # fmt: skip
    return output


def _tiles(x: torch.Tensor, swiglu: bool, is_int8: bool) -> tuple[int, int, int]:
    """Returns the rows and columns of a tile of `x`, and the number of pipeline stages."""
    if is_int8:
        tile_m = MAX_ROWS if len(x) <= MAX_ROWS else MAX_INT8_ROWS
        return tile_m, *int8_tile_k_and_stages(_has_large_shared_memory(x.device), x.element_size(), tile_m, swiglu)
    tile_k, swiglu_stages, stages = _tile_k_and_stages(x.device, x.element_size())
    return MAX_ROWS, tile_k, swiglu_stages if swiglu else stages
