"""Attention of one new token per sequence over the paged KV cache, with the token's rotation and its cache write.

A program computes one query head of one sequence. If the batch alone does not fill the device, several programs share
the keys of that head (split-KV: Flash-Decoding, Dao et al. 2023; paged blocks: PagedAttention, Kwon et al. 2023,
arXiv:2309.06180). Each lane of a tile has its own running softmax, so the loop over the keys needs no communication
between warps. The lanes are merged once, at the end. With one query per key head, tensor cores have no work: the kernel
is bound by memory, and it runs on every device that Triton compiles for.
"""

import torch
import triton
import triton.language as tl

from ..kv_cache import LayerCache
from .dependent_launch import pdl_options
from .int8 import to_int8

LOG2_E = 1.4426950408889634
TILE, NUM_WARPS = 32, 4
# With this many programs, more splits gain nothing: it is a few for each multiprocessor of the largest cards.
SUFFICIENT_PROGRAMS = 320
MAX_SPLITS = 8


@triton.jit(do_not_specialize=["row_stride", "table_stride"])
def _decode(
    heads, cos, sin, positions, block_tables, keys, values, key_scales, value_scales, output, split_outputs,
    split_stats, scale,
    row_stride, table_stride, head_slots,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, HALF_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, INT8: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    HALF: tl.constexpr = HEAD_SIZE // 2
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    seq, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_head = head // GROUP
    position = tl.load(positions + seq).to(tl.int32)  # keys 0 to position - 1 are cached; negative in a padding row
    column = tl.arange(0, HALF_BLOCK)
    column_mask = column < HALF
    angle = tl.maximum(position, 0).to(tl.int64) * HEAD_SIZE + column
    cosine = tl.load(cos + angle, mask=column_mask, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=column_mask, other=0.0).to(tl.float32)
    row = heads + seq * row_stride
    query = row + head * HEAD_SIZE + column
    first = tl.load(query, mask=column_mask, other=0.0).to(tl.float32)
    second = tl.load(query + HALF, mask=column_mask, other=0.0).to(tl.float32)
    query_1 = ((first * cosine - second * sine).to(heads.dtype.element_ty)).to(tl.float32) * scale
    query_2 = ((second * cosine + first * sine).to(heads.dtype.element_ty)).to(tl.float32) * scale

    tiles = tl.cdiv(tl.maximum(position, 0), TILE)
    start = split * tl.cdiv(tiles, SPLITS) * TILE
    stop = tl.minimum(start + tl.cdiv(tiles, SPLITS) * TILE, position)
    lane = tl.arange(0, TILE)
    lane_max = tl.full([TILE], -1.0e30, tl.float32)
    lane_sum = tl.zeros([TILE], tl.float32)
    acc_1 = tl.zeros([TILE, HALF_BLOCK], tl.float32)
    acc_2 = tl.zeros([TILE, HALF_BLOCK], tl.float32)
    for tile_start in range(start, stop, TILE):
        token = tile_start + lane
        lane_mask = token < stop
        block = tl.load(block_tables + seq * table_stride + token // BLOCK_SIZE, mask=lane_mask, other=0).to(tl.int64)
        slot = kv_head.to(tl.int64) * head_slots + block * BLOCK_SIZE + token % BLOCK_SIZE
        offset = slot[:, None] * HEAD_SIZE + column[None, :]
        mask = lane_mask[:, None] & column_mask[None, :]
        key_1 = tl.load(keys + offset, mask=mask, other=0.0).to(tl.float32)
        key_2 = tl.load(keys + offset + HALF, mask=mask, other=0.0).to(tl.float32)
        value_1 = tl.load(values + offset, mask=mask, other=0.0).to(tl.float32)
        value_2 = tl.load(values + offset + HALF, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(key_1 * query_1[None, :] + key_2 * query_2[None, :], 1)
        if INT8:
            score *= tl.load(key_scales + slot, mask=lane_mask, other=0.0)
        score = tl.where(lane_mask, score, -1.0e30)
        new_max = tl.maximum(lane_max, score)
        rescale = tl.exp2(lane_max - new_max)
        weight = tl.where(lane_mask, tl.exp2(score - new_max), 0.0)
        lane_sum = lane_sum * rescale + weight
        if INT8:
            weight *= tl.load(value_scales + slot, mask=lane_mask, other=0.0)
        acc_1 = acc_1 * rescale[:, None] + value_1 * weight[:, None]
        acc_2 = acc_2 * rescale[:, None] + value_2 * weight[:, None]
        lane_max = new_max
    split_max = tl.max(lane_max, 0)
    rescale = tl.exp2(lane_max - split_max)
    split_sum = tl.sum(lane_sum * rescale, 0)
    out_1 = tl.sum(acc_1 * rescale[:, None], 0)
    out_2 = tl.sum(acc_2 * rescale[:, None], 0)

    if split == SPLITS - 1:  # the new token's own key and value come from the step, not from the cache
        new = row + (NUM_HEADS + kv_head) * HEAD_SIZE + column
        first = tl.load(new, mask=column_mask, other=0.0).to(tl.float32)
        second = tl.load(new + HALF, mask=column_mask, other=0.0).to(tl.float32)
        new_key_1, new_key_2 = first * cosine - second * sine, second * cosine + first * sine
        new_value = new + NUM_KV_HEADS * HEAD_SIZE
        new_value_1 = tl.load(new_value, mask=column_mask, other=0.0).to(tl.float32)
        new_value_2 = tl.load(new_value + HALF, mask=column_mask, other=0.0).to(tl.float32)
        if INT8:
            new_key_1, new_key_2, key_scale = to_int8(new_key_1, new_key_2)
            new_value_1, new_value_2, value_scale = to_int8(new_value_1, new_value_2)
        new_key_1, new_key_2 = new_key_1.to(keys.dtype.element_ty), new_key_2.to(keys.dtype.element_ty)
        new_value_1, new_value_2 = new_value_1.to(values.dtype.element_ty), new_value_2.to(values.dtype.element_ty)
        if (head % GROUP == 0) & (position >= 0):
            block = tl.load(block_tables + seq * table_stride + position // BLOCK_SIZE).to(tl.int64)
            slot = kv_head.to(tl.int64) * head_slots + block * BLOCK_SIZE + position % BLOCK_SIZE
            offset = slot * HEAD_SIZE + column
            tl.store(keys + offset, new_key_1, mask=column_mask)
            tl.store(keys + offset + HALF, new_key_2, mask=column_mask)
            tl.store(values + offset, new_value_1, mask=column_mask)
            tl.store(values + offset + HALF, new_value_2, mask=column_mask)
            if INT8:
                tl.store(key_scales + slot, key_scale)
                tl.store(value_scales + slot, value_scale)
        score = tl.sum(new_key_1.to(tl.float32) * query_1 + new_key_2.to(tl.float32) * query_2, 0)
        if INT8:
            score *= key_scale
        max_with_new = tl.maximum(split_max, score)
        split_rescale = tl.exp2(split_max - max_with_new)
        new_weight = tl.exp2(score - max_with_new)
        split_sum = split_sum * split_rescale + new_weight
        if INT8:
            new_weight *= value_scale
        out_1 = out_1 * split_rescale + new_value_1.to(tl.float32) * new_weight
        out_2 = out_2 * split_rescale + new_value_2.to(tl.float32) * new_weight
        split_max = max_with_new

    if SPLITS == 1:
        result = output + (seq * NUM_HEADS + head) * HEAD_SIZE + column
        tl.store(result, (out_1 / split_sum).to(output.dtype.element_ty), mask=column_mask)
        tl.store(result + HALF, (out_2 / split_sum).to(output.dtype.element_ty), mask=column_mask)
    else:
        index = (seq * NUM_HEADS + head) * SPLITS + split
        tl.store(split_outputs + index * HEAD_SIZE + column, out_1, mask=column_mask)
        tl.store(split_outputs + index * HEAD_SIZE + HALF + column, out_2, mask=column_mask)
        tl.store(split_stats + index * 2, split_max)
        tl.store(split_stats + index * 2 + 1, split_sum)


@triton.jit
def _join_splits(
    split_outputs, split_stats, output, HEAD_SIZE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head = tl.program_id(0).to(tl.int64)  # counted through all sequences
    split, column = tl.arange(0, SPLITS), tl.arange(0, BLOCK)
    column_mask = column < HEAD_SIZE
    split_max = tl.load(split_stats + (head * SPLITS + split) * 2)
    split_sum = tl.load(split_stats + (head * SPLITS + split) * 2 + 1)
    weight = tl.exp2(split_max - tl.max(split_max, 0))
    offset = (head * SPLITS + split)[:, None] * HEAD_SIZE + column[None, :]
    outputs = tl.load(split_outputs + offset, mask=column_mask[None, :], other=0.0)
    joined = tl.sum(outputs * weight[:, None], 0) / tl.sum(split_sum * weight, 0)
    tl.store(output + head * HEAD_SIZE + column, joined.to(output.dtype.element_ty), mask=column_mask)


def num_splits(num_seqs: int, num_heads: int) -> int:
    """Returns a power of two that fills the device.

    It depends only on the shape of the batch, so that a captured graph is valid for all lengths.
    """
    splits = 1
    while splits < MAX_SPLITS and num_seqs * num_heads * splits < SUFFICIENT_PROGRAMS:
        splits *= 2
    return splits


def decode_attention(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, block_tables: torch.Tensor,
    cache: LayerCache, block_size: int, splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Writes the rotated key and the value of one token per sequence to the cache, and returns its attention.

    `heads` (sequences, query + key + value heads, head size) before rotation, a sequence's heads contiguous; `cos` and
    `sin` (context, head size); `positions` (sequences,) int32, -1 for a padding row, which writes nothing and attends
    to itself; `block_tables` (sequences, blocks) int32; `cache` of one layer, whose slots are contiguous.
    Returns (sequences, query heads, head size): each query attends to its own position and to all before it.
    """
    num_seqs, all_heads, head_size = heads.shape
    keys, values, key_scales, value_scales = cache
    num_kv_heads, head_slots, _ = keys.shape
    num_heads = all_heads - 2 * num_kv_heads
    splits = splits or num_splits(num_seqs, num_heads)
    output = heads.new_empty(num_seqs, num_heads, head_size)
    if splits == 1:
        split_outputs = split_stats = output  # not used
    else:
        split_outputs = heads.new_empty(num_seqs, num_heads, splits, head_size, dtype=torch.float32)
        split_stats = heads.new_empty(num_seqs, num_heads, splits, 2, dtype=torch.float32)
    _decode[(num_seqs, num_heads, splits)](
        heads, cos, sin, positions, block_tables, keys, values, key_scales, value_scales, output, split_outputs,
        split_stats, head_size**-0.5 * LOG2_E, heads.stride(0), block_tables.stride(0), head_slots,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_SIZE=head_size,
        HALF_BLOCK=triton.next_power_of_2(head_size // 2), BLOCK_SIZE=block_size, TILE=TILE, SPLITS=splits,
        INT8=key_scales is not None, num_warps=NUM_WARPS, **pdl_options(heads),
    )  # fmt: skip
    if splits > 1:
        _join_splits[(num_seqs * num_heads,)](
            split_outputs, split_stats, output, HEAD_SIZE=head_size, BLOCK=triton.next_power_of_2(head_size),
            SPLITS=splits, num_warps=4, **pdl_options(heads),
        )  # fmt: skip
    return output
