"""Rotary position embedding and the write into the KV cache in one launch, for the tokens of prompts."""

import torch
import triton
import triton.language as tl

from .dependent_launch import early

HEADS = 8  # of one token that a program takes


@triton.jit(do_not_specialize=["row_stride"])
def _rotate_and_cache(
    heads, cos, sin, positions, slots, keys, values, row_stride, head_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    HALF: tl.constexpr = SIZE // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & (column < HALF)
    at = heads + token * row_stride + head * SIZE + column
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(positions + token).to(tl.int64)
    cosine = tl.load(cos + position * SIZE + column, mask=column < HALF, other=0.0).to(tl.float32)
    sine = tl.load(sin + position * SIZE + column, mask=column < HALF, other=0.0).to(tl.float32)
    rotates = head < NUM_HEADS + NUM_KV_HEADS
    turned = tl.where(rotates, first * cosine - second * sine, first)
    turned_second = tl.where(rotates, second * cosine + first * sine, second)
    number = heads.dtype.element_ty
    tl.store(at, turned.to(number), mask=inside & rotates)
    tl.store(at + HALF, turned_second.to(number), mask=inside & rotates)
    slot = tl.load(slots + token).to(tl.int64) * SIZE
    is_key = inside & rotates & (head >= NUM_HEADS)
    key = keys + (head - NUM_HEADS) * head_stride + slot + column
    tl.store(key, turned.to(keys.dtype.element_ty), mask=is_key)
    tl.store(key + HALF, turned_second.to(keys.dtype.element_ty), mask=is_key)
    is_value = inside & (head >= NUM_HEADS + NUM_KV_HEADS)
    value = values + (head - NUM_HEADS - NUM_KV_HEADS) * head_stride + slot + column
    tl.store(value, first.to(values.dtype.element_ty), mask=is_value)
    tl.store(value + HALF, second.to(values.dtype.element_ty), mask=is_value)


def rotate_and_cache(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor,
    keys: torch.Tensor, values: torch.Tensor,
) -> None:  # fmt: skip
    """Rotates query and key heads in place (RoFormer, Su et al. 2021, arXiv:2104.09864; halves paired as in
    transformers), and writes keys and values of each token to its slot.

    `heads` (tokens, query + key + value heads, head size), a token's heads contiguous; `cos` and `sin` (context, head
    size); `positions` and `slots` (tokens,) integers; `keys` and `values` of one layer (KV heads, slots, head size).
    """
    tokens, all_heads, size = heads.shape
    num_kv_heads = keys.shape[0]
    if not tokens:
        return
    _rotate_and_cache[(tokens, triton.cdiv(all_heads, HEADS))](
        heads, cos, sin, positions, slots, keys, values, heads.stride(0), keys.stride(0),
        NUM_HEADS=all_heads - 2 * num_kv_heads, NUM_KV_HEADS=num_kv_heads, SIZE=size,
        HALF_BLOCK=triton.next_power_of_2(size // 2), HEADS=HEADS, **early(heads),
    )  # fmt: skip
