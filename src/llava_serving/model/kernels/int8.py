"""Rounds a key or a value to 8 bits, as `kv_cache_int8` describes."""

import triton
import triton.language as tl

ROUND = tl.constexpr(1.5 * 2**23)  # a float32 to which it is added loses its fraction, and ties go to the even number


@triton.jit
def to_int8(first, second):
    """Returns two halves of numbers as whole numbers in float32, and their scale, by row or of the only one."""
    axis: tl.constexpr = len(first.shape) - 1
    absmax = tl.maximum(tl.max(tl.abs(first), axis), tl.max(tl.abs(second), axis))
    total = tl.sum(tl.abs(first), axis) + tl.sum(tl.abs(second), axis)
    inverse = tl.div_rn(127.0, tl.maximum(absmax, 1e-30))
    scale = tl.where(total < float("inf"), absmax * (1 / 127), float("nan"))
    inverse = tl.where(total < float("inf"), inverse, 0.0)
    if axis == 1:
        inverse = inverse[:, None]
    return (first * inverse + ROUND) - ROUND, (second * inverse + ROUND) - ROUND, scale
