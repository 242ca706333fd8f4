"""Attention of prompt chunks: several sequences in one launch, causal from the bottom right, without a mask in memory.

Each function takes `query` (queries, query heads, head size), `key` and `value` (keys, KV heads, head size), the
sequences one after the other, and where each begins and ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

CAUSAL_FROM_BOTTOM_RIGHT = 2  # torch's sdp::CustomMaskType
FLASH_CAPABILITY = (8, 0)
MAX_FLASH_HEAD_SIZE = 256


@dataclass(frozen=True)
class Extents:
    """Where sequences begin: `queries` and `keys` (sequences + 1,) int32 on the device, and their lengths on the host.

    The queries of a sequence are the last of its keys.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_lengths: list[int]
    key_lengths: list[int]


PrefillAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Extents], torch.Tensor]


def choose(device: torch.device, dtype: torch.dtype, head_size: int) -> PrefillAttention:
    """The fastest of torch's kernels that the device has for these numbers."""
    if device.type != "cuda":
        return one_by_one
    half = dtype in (torch.float16, torch.bfloat16)
    recent = torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    if half and recent and head_size <= MAX_FLASH_HEAD_SIZE and head_size % 8 == 0:
        return flash
    return memory_efficient if head_size % 8 == 0 else one_by_one


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extents: Extents) -> torch.Tensor:
    """FlashAttention-2 (Dao 2023, arXiv:2307.08691) as torch bundles it, from sm_80 on."""
    attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, extents.queries, extents.keys, max(extents.query_lengths), max(extents.key_lengths),
        0.0, True, False,
    )[0]  # fmt: skip
    return attended


def memory_efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extents: Extents) -> torch.Tensor:
    """Memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682) as torch bundles it, on any card."""
    group = query.shape[1] // key.shape[1]
    if group > 1:  # the kernel has as many key heads as query heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, extents.queries, extents.keys, max(extents.query_lengths),
        max(extents.key_lengths), 0.0, CAUSAL_FROM_BOTTOM_RIGHT,
    )[0]  # fmt: skip
    return attended[0]


def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extents: Extents) -> torch.Tensor:
    """A sequence at a time with a mask, on any device: the reference."""
    parts = []
    lengths = zip(extents.query_lengths, extents.key_lengths, strict=True)
    first_query = first_key = 0
    for num_queries, num_keys in lengths:
        positions = torch.arange(num_keys - num_queries, num_keys, device=query.device)
        seen = torch.arange(num_keys, device=query.device) <= positions[:, None]
        keys = slice(first_key, first_key + num_keys)
        attended = scaled_dot_product_attention(
            query[first_query : first_query + num_queries].transpose(0, 1)[None],
            key[keys].transpose(0, 1)[None],
            value[keys].transpose(0, 1)[None],
            attn_mask=seen,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(attended[0].transpose(0, 1))
        first_query, first_key = first_query + num_queries, first_key + num_keys
    return torch.cat(parts)
