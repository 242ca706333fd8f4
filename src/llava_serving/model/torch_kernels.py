"""Paged attention by torch's own operators, on any device."""

import torch

from .kv_cache import BLOCK_SIZE
from .rotary import apply_rotary


class TorchKernels:
    """The reference of Triton's kernels, and the fallback on a GPU without Triton.

    The arguments are those of `kernels.decode_attention` and `kernels.rotary`.
    """

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        num_seqs, all_heads, head_size = heads.shape
        num_kv_heads, num_slots, _ = keys.shape
        positions = positions.long()
        is_padding = positions < 0
        positions = positions.clamp(min=0)
        block = block_tables.gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0].long()
        # A padding row writes to the null block, which is the last one, and attends only to what it wrote.
        slots = (block * BLOCK_SIZE + positions % BLOCK_SIZE).masked_fill(is_padding, num_slots - BLOCK_SIZE)
        self.rotate_and_cache(heads, cos, sin, positions, slots, keys, values)
        attended_to = torch.arange(block_tables.shape[1] * BLOCK_SIZE, device=heads.device) <= positions[:, None]
        blocks = block_tables.masked_fill(is_padding[:, None], num_slots // BLOCK_SIZE - 1).flatten()
        # (KV heads, sequences, tokens, head size). Slots beyond a sequence's end may hold NaN, and 0 x NaN is NaN.
        gathered = (
            cached.view(num_kv_heads, -1, BLOCK_SIZE, head_size)
            .index_select(1, blocks)
            .view(num_kv_heads, num_seqs, -1, head_size)
            for cached in (keys, values)
        )
        key, value = (torch.where(attended_to[..., None], states, 0).to(heads.dtype) for states in gathered)
        num_heads = all_heads - 2 * num_kv_heads
        query = heads[:, :num_heads].reshape(num_seqs, num_kv_heads, -1, head_size).transpose(0, 1)
        scores = torch.matmul(query * head_size**-0.5, key.transpose(-1, -2))
        weights = scores.masked_fill(~attended_to[:, None], -torch.inf).softmax(-1, dtype=torch.float32)
        return torch.matmul(weights.to(value.dtype), value).transpose(0, 1).flatten(1, 2)

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> None:  # fmt: skip
        num_kv_heads = len(keys)
        query_and_key = heads[:, :-num_kv_heads]
        query_and_key.copy_(apply_rotary(query_and_key, cos[positions, None], sin[positions, None]))
        keys.index_copy_(1, slots, heads[:, -2 * num_kv_heads : -num_kv_heads].transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, slots, heads[:, -num_kv_heads:].transpose(0, 1).to(values.dtype))
