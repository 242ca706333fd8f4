"""Attention of prompt chunks: several sequences in one launch, each causal, without a mask in memory.

Each function takes `query` (queries, query heads, head size) and `key` and `value` (keys, KV heads, head size). The
sequences are concatenated along the first dimension, and `lengths` says where each one begins. The mask is aligned to
the bottom right: a sequence's queries are its last keys.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

CAUSAL_FROM_BOTTOM_RIGHT = 2  # torch's sdp::CustomMaskType
FLASH_CAPABILITY = (8, 0)
MAX_FLASH_HEAD_SIZE = 256


@dataclass(frozen=True)
class SequenceLengths:
    """The lengths of a step's sequences, named as in FlashAttention's interface for variable lengths.

    `cu_seqlens_q` and `cu_seqlens_k` (sequences + 1,) are cumulative, int32, on the device. `seqlens_q` and `seqlens_k`
    are the lengths on the host.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    seqlens_q: list[int]
    seqlens_k: list[int]


PrefillAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, SequenceLengths], torch.Tensor]


def choose_prefill_attention(device: torch.device, dtype: torch.dtype, head_size: int) -> PrefillAttention:
    """Returns the fastest of torch's kernels that supports this device, dtype and head size."""
    if device.type != "cuda":
        return masked_attention
    half = dtype in (torch.float16, torch.bfloat16)
    has_flash = torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    if half and has_flash and head_size <= MAX_FLASH_HEAD_SIZE and head_size % 8 == 0:
        return flash_attention
    return memory_efficient_attention if head_size % 8 == 0 else masked_attention


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: SequenceLengths
) -> torch.Tensor:
    """FlashAttention-2 (Dao 2023, arXiv:2307.08691) as torch bundles it, from sm_80 on."""
    attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, lengths.cu_seqlens_q, lengths.cu_seqlens_k, max(lengths.seqlens_q), max(lengths.seqlens_k),
        0.0, True, False,
    )[0]  # fmt: skip
    return attended


def memory_efficient_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: SequenceLengths
) -> torch.Tensor:
    """Memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682) as torch bundles it, on any card."""
    group = query.shape[1] // key.shape[1]
    if group > 1:  # the kernel takes as many key heads as query heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, lengths.cu_seqlens_q, lengths.cu_seqlens_k, max(lengths.seqlens_q),
        max(lengths.seqlens_k), 0.0, CAUSAL_FROM_BOTTOM_RIGHT,
    )[0]  # fmt: skip
    return attended[0]


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: SequenceLengths
) -> torch.Tensor:
    """One sequence at a time, on any device: the reference of the others. Later parts of prompts need a mask."""
    outputs = []
    queries = torch.split_with_sizes(query, lengths.seqlens_q)
    keys, values = (torch.split_with_sizes(states, lengths.seqlens_k) for states in (key, value))
    for seq_query, seq_key, seq_value in zip(queries, keys, values, strict=True):
        num_queries, num_keys = len(seq_query), len(seq_key)
        query_positions = torch.arange(num_keys - num_queries, num_keys, device=query.device)
        mask = (
            None if num_queries == num_keys else torch.arange(num_keys, device=query.device) <= query_positions[:, None]
        )
        attended = scaled_dot_product_attention(
            seq_query.transpose(0, 1)[None],
            seq_key.transpose(0, 1)[None],
            seq_value.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)
