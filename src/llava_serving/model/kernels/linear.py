"""Linear layers of few rows, with what stands before and after them in the same launch.

A decode step reads every weight once, and cuBLAS leaves a tenth of the bandwidth unused at few rows (measured on an
H100, see benchmarks/README.md). These kernels norm a single row while they read it, and add their output to the
residual or make SwiGLU of it.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from .dependent_launch import early
from .norm import add_rms_norm

LARGE_SHARED_MEMORY = (9, 0)
# One row: dot products on plain cores. Up to this many: tensor cores on rows filled up to 16, from sm_80 on.
MAX_ROWS = 16
TILE_N = 64
# Columns that a program of one row reads at once. On an H100 a step of one sequence takes 9.5 ms with 512, 9.3 with
# 1,024 and 9.0 with 2,048.
CHUNK = 2048
# Output features from which one a program fills the device; with fewer, two share the loads of the row.
WIDE = 8192


@cache
def _tiles(device: torch.device, item_bytes: int) -> tuple[int, int, int]:
    """Columns of a tile of `_few_rows`, and how many tiles are under way with two weights and with one.

    As much as shared memory holds: 227 KiB on sm_90, where a step of 16 sequences takes 12.4 ms with half as much and
    11.9 ms with this, and 99 KiB on the smallest from sm_80 on.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= LARGE_SHARED_MEMORY:
        return 512 // item_bytes, 3, 4
    return 256 // item_bytes, 2, 4


@triton.jit
def _one_row(
    x, norm, weight, bias, output, epsilon, N,
    K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr,
    NORMS: tl.constexpr, GATES: tl.constexpr, ADDS: tl.constexpr, BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = n < N
    column = tl.arange(0, CHUNK)
    row = weight + n[:, None].to(tl.int64) * K + column[None, :]
    up_row = row + N.to(tl.int64) * K
    sums = tl.zeros([ROWS, CHUNK], tl.float32)
    gated = tl.zeros([ROWS, CHUNK], tl.float32)
    squares = tl.zeros([CHUNK], tl.float32)
    # The weights are nobody's result: their first chunk is on its way while the kernel before this one ends.
    mask = known[:, None] & (column < K)[None, :]
    weights = tl.load(row, mask=mask, other=0.0)
    if GATES:
        up = tl.load(up_row, mask=mask, other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    for k in tl.static_range(0, K, CHUNK):
        if k > 0:
            inside = (k + column < K) if not EVEN else (column < CHUNK)
            mask = known[:, None] & inside[None, :]
            weights = tl.load(row + k, mask=mask, other=0.0)
            if GATES:
                up = tl.load(up_row + k, mask=mask, other=0.0)
        inside = k + column < K
        values = tl.load(x + k + column, mask=inside, other=0.0).to(tl.float32)
        if NORMS:
            squares += values * values
            values *= tl.load(norm + k + column, mask=inside, other=0.0).to(tl.float32)
        sums += weights.to(tl.float32) * values[None, :]
        if GATES:
            gated += up.to(tl.float32) * values[None, :]
    result = tl.sum(sums, 1)
    if NORMS:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + epsilon)
        result *= scale
    if BIAS:
        result += tl.load(bias + n, mask=known, other=0.0).to(tl.float32)
    if GATES:
        second = tl.sum(gated, 1)
        if NORMS:
            second *= scale
        if BIAS:
            second += tl.load(bias + N + n, mask=known, other=0.0).to(tl.float32)
        result = result * tl.sigmoid(result) * second
    if ADDS:
        # cuBLAS rounds the product before it is added; so does this.
        result = result.to(output.dtype.element_ty).to(tl.float32)
        result += tl.load(output + n, mask=known, other=0.0).to(tl.float32)
    tl.store(output + n, result.to(output.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["M"])
def _few_rows(
    x, weight, bias, output, M, N,
    K: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN: tl.constexpr,
    GATES: tl.constexpr, ADDS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    m = tl.arange(0, TILE_M)
    column = tl.arange(0, TILE_K)
    known, rows = n < N, m < M
    weight_row = weight + n[:, None].to(tl.int64) * K + column[None, :]
    x_row = x + m[None, :] * K + column[:, None]
    result = tl.zeros([TILE_N, TILE_M], tl.float32)
    second = tl.zeros([TILE_N, TILE_M], tl.float32)
    for k in range(0, K, TILE_K):
        inside = (k + column < K) if not EVEN else (column < TILE_K)
        mask = known[:, None] & inside[None, :]
        values = tl.load(x_row + k, mask=rows[None, :] & inside[:, None], other=0.0)
        weights = tl.load(weight_row + k, mask=mask, other=0.0)
        result = tl.dot(weights, values, result, input_precision=PRECISION)
        if GATES:
            up = tl.load(weight_row + k + N.to(tl.int64) * K, mask=mask, other=0.0)
            second = tl.dot(up, values, second, input_precision=PRECISION)
    if BIAS:
        result += tl.load(bias + n, mask=known, other=0.0).to(tl.float32)[:, None]
    if GATES:
        if BIAS:
            second += tl.load(bias + N + n, mask=known, other=0.0).to(tl.float32)[:, None]
        result = result * tl.sigmoid(result) * second
    at = output + m[None, :].to(tl.int64) * N + n[:, None]
    mask = known[:, None] & rows[None, :]
    if ADDS:
        result = result.to(output.dtype.element_ty).to(tl.float32)
        result += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, result.to(output.dtype.element_ty), mask=mask)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    gates: bool = False,
    add_to: torch.Tensor | None = None,
) -> torch.Tensor:
    """`weight` (out, in) times each of at most MAX_ROWS rows of `x` (rows, in).

    With `norm`, the rows are RMS-normed first. With `gates`, the weight's halves are gate and up, and the result is
    (rows, out / 2): SiLU of the first times the second. With `add_to` (rows, out), the result is added to it in place.
    """
    rows, width = x.shape
    size = len(weight) // 2 if gates else len(weight)
    if norm is not None and rows > 1:
        x, norm = add_rms_norm(x, None, norm, epsilon), None
    output = x.new_empty(rows, size) if add_to is None else add_to
    flags = {"GATES": gates, "ADDS": add_to is not None, "BIAS": bias is not None, **early(x)}
    biases = x if bias is None else bias
    if rows == 1:
        at_once = 1 if size >= WIDE else 2
        _one_row[(triton.cdiv(size, at_once),)](
            x, x if norm is None else norm, weight, biases, output, epsilon, size, K=width, ROWS=at_once, CHUNK=CHUNK,
            EVEN=width % CHUNK == 0, NORMS=norm is not None, **flags, num_warps=4,
        )  # fmt: skip
    else:
        tile_k, stages_of_two, stages = _tiles(x.device, x.element_size())
        _few_rows[(triton.cdiv(size, TILE_N),)](
            x, weight, biases, output, rows, size, K=width, TILE_M=MAX_ROWS, TILE_N=TILE_N, TILE_K=tile_k,
            EVEN=width % tile_k == 0, **flags, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=4, num_stages=stages_of_two if gates else stages,
        )  # fmt: skip
    return output
