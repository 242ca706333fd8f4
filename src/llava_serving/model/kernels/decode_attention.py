"""Attention of one new token a sequence over the paged KV cache, with the token's rotation and its write to the cache.

A program takes one query head of one sequence, or one of several parts of its keys where the batch alone does not fill
the device (split-KV: Flash-Decoding, Dao et al. 2023; paged blocks: PagedAttention, Kwon et al. 2023,
arXiv:2309.06180). Each lane of a tile has a running softmax of its own, so that the loop over the keys crosses no
warps; the lanes are joined once, at the end. One query a key head leaves nothing for tensor cores to do: the kernel is
bound by memory, and runs on every device that Triton compiles for.
"""

import torch
import triton
import triton.language as tl

from .dependent_launch import early

LOG2_E = 1.4426950408889634
TILE, NUM_WARPS = 32, 4
# Programs beyond which another split brings nothing: a few for each multiprocessor of the largest cards.
ENOUGH_PROGRAMS = 320
MAX_SPLITS = 8


@triton.jit(do_not_specialize=["row_stride", "table_stride"])
def _decode(
    heads, cos, sin, positions, tables, keys, values, output, partial, statistics, scale,
    row_stride, table_stride, head_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    HALF: tl.constexpr = SIZE // 2
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    seq, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_head = head // GROUP
    position = tl.load(positions + seq).to(tl.int32)  # keys 0 to position - 1 are cached; below 0: a padding row
    column = tl.arange(0, HALF_BLOCK)
    inside = column < HALF
    angle = tl.maximum(position, 0).to(tl.int64) * SIZE + column
    cosine = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    row = heads + seq * row_stride
    query = row + head * SIZE + column
    first = tl.load(query, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(query + HALF, mask=inside, other=0.0).to(tl.float32)
    query_1 = ((first * cosine - second * sine).to(heads.dtype.element_ty)).to(tl.float32) * scale
    query_2 = ((second * cosine + first * sine).to(heads.dtype.element_ty)).to(tl.float32) * scale

    tiles = tl.cdiv(tl.maximum(position, 0), TILE)
    start = split * tl.cdiv(tiles, SPLITS) * TILE
    stop = tl.minimum(start + tl.cdiv(tiles, SPLITS) * TILE, position)
    lane = tl.arange(0, TILE)
    highest = tl.full([TILE], -1.0e30, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sum_1 = tl.zeros([TILE, HALF_BLOCK], tl.float32)
    sum_2 = tl.zeros([TILE, HALF_BLOCK], tl.float32)
    for first_key in range(start, stop, TILE):
        token = first_key + lane
        known = token < stop
        block = tl.load(tables + seq * table_stride + token // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        at = kv_head.to(tl.int64) * head_stride + (block * BLOCK_SIZE + token % BLOCK_SIZE) * SIZE
        at = at[:, None] + column[None, :]
        mask = known[:, None] & inside[None, :]
        key_1 = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
        key_2 = tl.load(keys + at + HALF, mask=mask, other=0.0).to(tl.float32)
        value_1 = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
        value_2 = tl.load(values + at + HALF, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(key_1 * query_1[None, :] + key_2 * query_2[None, :], 1)
        score = tl.where(known, score, -1.0e30)
        higher = tl.maximum(highest, score)
        keep = tl.exp2(highest - higher)
        weight = tl.where(known, tl.exp2(score - higher), 0.0)
        total = total * keep + weight
        sum_1 = sum_1 * keep[:, None] + value_1 * weight[:, None]
        sum_2 = sum_2 * keep[:, None] + value_2 * weight[:, None]
        highest = higher
    top = tl.max(highest, 0)
    keep = tl.exp2(highest - top)
    total_all = tl.sum(total * keep, 0)
    out_1 = tl.sum(sum_1 * keep[:, None], 0)
    out_2 = tl.sum(sum_2 * keep[:, None], 0)

    if split == SPLITS - 1:  # the new token's own key and value come from the step, not from the cache
        new = row + (NUM_HEADS + kv_head) * SIZE + column
        first = tl.load(new, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(new + HALF, mask=inside, other=0.0).to(tl.float32)
        new_key_1 = (first * cosine - second * sine).to(keys.dtype.element_ty)
        new_key_2 = (second * cosine + first * sine).to(keys.dtype.element_ty)
        new_value_1 = tl.load(new + NUM_KV_HEADS * SIZE, mask=inside, other=0.0).to(values.dtype.element_ty)
        new_value_2 = tl.load(new + NUM_KV_HEADS * SIZE + HALF, mask=inside, other=0.0).to(values.dtype.element_ty)
        if (head % GROUP == 0) & (position >= 0):
            block = tl.load(tables + seq * table_stride + position // BLOCK_SIZE).to(tl.int64)
            slot = kv_head.to(tl.int64) * head_stride + (block * BLOCK_SIZE + position % BLOCK_SIZE) * SIZE + column
            tl.store(keys + slot, new_key_1, mask=inside)
            tl.store(keys + slot + HALF, new_key_2, mask=inside)
            tl.store(values + slot, new_value_1, mask=inside)
            tl.store(values + slot + HALF, new_value_2, mask=inside)
        score = tl.sum(new_key_1.to(tl.float32) * query_1 + new_key_2.to(tl.float32) * query_2, 0)
        higher_all = tl.maximum(top, score)
        keep_all = tl.exp2(top - higher_all)
        weight_new = tl.exp2(score - higher_all)
        total_all = total_all * keep_all + weight_new
        out_1 = out_1 * keep_all + new_value_1.to(tl.float32) * weight_new
        out_2 = out_2 * keep_all + new_value_2.to(tl.float32) * weight_new
        top = higher_all

    if SPLITS == 1:
        result = output + (seq * NUM_HEADS + head) * SIZE + column
        tl.store(result, (out_1 / total_all).to(output.dtype.element_ty), mask=inside)
        tl.store(result + HALF, (out_2 / total_all).to(output.dtype.element_ty), mask=inside)
    else:
        part = (seq * NUM_HEADS + head) * SPLITS + split
        tl.store(partial + part * SIZE + column, out_1, mask=inside)
        tl.store(partial + part * SIZE + HALF + column, out_2, mask=inside)
        tl.store(statistics + part * 2, top)
        tl.store(statistics + part * 2 + 1, total_all)


@triton.jit
def _join_splits(
    partial, statistics, output, SIZE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head = tl.program_id(0).to(tl.int64)  # of all sequences
    split, column = tl.arange(0, SPLITS), tl.arange(0, BLOCK)
    inside = column < SIZE
    highest = tl.load(statistics + (head * SPLITS + split) * 2)
    total = tl.load(statistics + (head * SPLITS + split) * 2 + 1)
    weight = tl.exp2(highest - tl.max(highest, 0))
    at = (head * SPLITS + split)[:, None] * SIZE + column[None, :]
    sums = tl.load(partial + at, mask=inside[None, :], other=0.0)
    joined = tl.sum(sums * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(output + head * SIZE + column, joined.to(output.dtype.element_ty), mask=inside)


def num_splits(num_seqs: int, num_heads: int) -> int:
    """A power of two that fills the device, from the batch's shape alone, so that a captured graph fits any lengths."""
    splits = 1
    while splits < MAX_SPLITS and num_seqs * num_heads * splits < ENOUGH_PROGRAMS:
        splits *= 2
    return splits


def decode_attention(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, tables: torch.Tensor,
    keys: torch.Tensor, values: torch.Tensor, block_size: int, splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """One token a sequence: its rotated key and its value enter the cache, and its queries attend to all up to it.

    `heads` (sequences, query + key + value heads, head size) before rotation, a sequence's heads contiguous; `cos` and
    `sin` (context, head size); `positions` (sequences,) int32, -1 for a padding row, which writes nothing and attends
    to itself; `tables` (sequences, blocks) int32; `keys` and `values` of one layer (KV heads, slots, head size).
    Returns (sequences, query heads, head size).
    """
    num_seqs, all_heads, size = heads.shape
    num_kv_heads = keys.shape[0]
    num_heads = all_heads - 2 * num_kv_heads
    splits = splits or num_splits(num_seqs, num_heads)
    output = heads.new_empty(num_seqs, num_heads, size)
    if splits == 1:
        partial = statistics = output
    else:
        partial = heads.new_empty(num_seqs, num_heads, splits, size, dtype=torch.float32)
        statistics = heads.new_empty(num_seqs, num_heads, splits, 2, dtype=torch.float32)
    _decode[(num_seqs, num_heads, splits)](
        heads, cos, sin, positions, tables, keys, values, output, partial, statistics, size**-0.5 * LOG2_E,
        heads.stride(0), tables.stride(0), keys.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, SIZE=size, HALF_BLOCK=triton.next_power_of_2(size // 2),
        BLOCK_SIZE=block_size, TILE=TILE, SPLITS=splits, num_warps=NUM_WARPS, **early(heads),
    )  # fmt: skip
    if splits > 1:
        _join_splits[(num_seqs * num_heads,)](
            partial, statistics, output, SIZE=size, BLOCK=triton.next_power_of_2(size), SPLITS=splits, num_warps=4,
            **early(heads),
        )  # fmt: skip
    return output
