"""Rotary position embedding and the write to the KV cache in one launch, for the tokens of prompts."""

import torch
import triton
import triton.language as tl

from ..kv_cache import LayerCache
from .dependent_launch import pdl_options
from .int8 import to_int8

HEADS_PER_PROGRAM = 8  # all of one token


@triton.jit(do_not_specialize=["row_stride"])
def _rotate_and_cache(
    heads, cos, sin, positions, slots, keys, values, key_scales, value_scales, row_stride, head_slots,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr, INT8: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    HALF: tl.constexpr = HEAD_SIZE // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_PER_PROGRAM + tl.arange(0, HEADS_PER_PROGRAM)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    mask = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & (column < HALF)
    pointers = heads + token * row_stride + head * HEAD_SIZE + column
    first = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(pointers + HALF, mask=mask, other=0.0).to(tl.float32)
    position = tl.load(positions + token).to(tl.int64)
    cosine = tl.load(cos + position * HEAD_SIZE + column, mask=column < HALF, other=0.0).to(tl.float32)
    sine = tl.load(sin + position * HEAD_SIZE + column, mask=column < HALF, other=0.0).to(tl.float32)
    is_rotated = head < NUM_HEADS + NUM_KV_HEADS
    rotated_first = tl.where(is_rotated, first * cosine - second * sine, first)
    rotated_second = tl.where(is_rotated, second * cosine + first * sine, second)
    slot = tl.load(slots + token).to(tl.int64)
    is_key = is_rotated & (head >= NUM_HEADS)
    key_slot = (head - NUM_HEADS) * head_slots + slot
    is_value = (head >= NUM_HEADS + NUM_KV_HEADS) & (head < NUM_HEADS + 2 * NUM_KV_HEADS)
    value_slot = (head - NUM_HEADS - NUM_KV_HEADS) * head_slots + slot
    cached_first, cached_second = rotated_first, rotated_second
    is_written = is_rotated
    if INT8:
        cached_first, cached_second, scale = to_int8(rotated_first, rotated_second)
        scale = scale[:, None]
        tl.store(key_scales + key_slot, scale, mask=is_key)
        tl.store(value_scales + value_slot, scale, mask=is_value)
        rotated_first = tl.where(head < NUM_HEADS, rotated_first, cached_first * scale)
        rotated_second = tl.where(head < NUM_HEADS, rotated_second, cached_second * scale)
        is_written = is_rotated | is_value
    dtype = heads.dtype.element_ty
    cached_dtype = keys.dtype.element_ty
    tl.store(pointers, rotated_first.to(dtype), mask=mask & is_written)
    tl.store(pointers + HALF, rotated_second.to(dtype), mask=mask & is_written)
    key = keys + key_slot * HEAD_SIZE + column
    tl.store(key, cached_first.to(cached_dtype), mask=mask & is_key)
    tl.store(key + HALF, cached_second.to(cached_dtype), mask=mask & is_key)
    value = values + value_slot * HEAD_SIZE + column
    tl.store(value, cached_first.to(cached_dtype), mask=mask & is_value)
    tl.store(value + HALF, cached_second.to(cached_dtype), mask=mask & is_value)


def rotate_and_cache(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,
    cache: LayerCache,
) -> None:  # fmt: skip
    """Rotates query and key heads in place (RoFormer, Su et al. 2021, arXiv:2104.09864; halves paired as in
    transformers), and writes keys and values of each token to its slot. `heads` then holds them as the cache does.

    `heads` (tokens, query + key + value heads, head size), a token's heads contiguous; `cos` and `sin` (context, head
    size); `positions` and `slots` (tokens,) integers; `cache` of one layer, whose slots are contiguous.
    """
    num_tokens, all_heads, head_size = heads.shape
    keys, values, key_scales, value_scales = cache
    num_kv_heads, head_slots, _ = keys.shape
    if not num_tokens:
        return
    _rotate_and_cache[(num_tokens, triton.cdiv(all_heads, HEADS_PER_PROGRAM))](
        heads, cos, sin, positions, slots, keys, values, key_scales, value_scales, heads.stride(0), head_slots,
        NUM_HEADS=all_heads - 2 * num_kv_heads, NUM_KV_HEADS=num_kv_heads, HEAD_SIZE=head_size,
        HALF_BLOCK=triton.next_power_of_2(head_size // 2), HEADS_PER_PROGRAM=HEADS_PER_PROGRAM,
        INT8=key_scales is not None, **pdl_options(heads),
    )  # fmt: skip
