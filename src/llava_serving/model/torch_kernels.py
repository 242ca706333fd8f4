"""Paged attention by torch's own operators, on any device."""

import torch

from .kv_cache import BLOCK_SIZE, LayerCache
from .kv_cache_int8 import dequantize, quantize
from .rotary import apply_rotary


class TorchKernels:
    """The reference of Triton's kernels, and the fallback on a GPU without Triton.

    The arguments are those of `kernels.decode_attention` and `kernels.rotary`.
    """

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        block_tables: torch.Tensor, cache: LayerCache,
    ) -> torch.Tensor:  # fmt: skip
        num_seqs, all_heads, head_size = heads.shape
        num_kv_heads, num_slots, _ = cache.keys.shape
        positions = positions.long()
        is_padding = positions < 0
        positions = positions.clamp(min=0)
        block = block_tables.gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0].long()
        # A padding row writes to the null block, which is the last one, and attends only to what it wrote.
        slots = (block * BLOCK_SIZE + positions % BLOCK_SIZE).masked_fill(is_padding, num_slots - BLOCK_SIZE)
        self.rotate_and_cache(heads, cos, sin, positions, slots, cache)
        attended_to = torch.arange(block_tables.shape[1] * BLOCK_SIZE, device=heads.device) <= positions[:, None]
        blocks = block_tables.masked_fill(is_padding[:, None], num_slots // BLOCK_SIZE - 1).flatten()

        def gather(cached: torch.Tensor) -> torch.Tensor:  # (KV heads, sequences, tokens, ...)
            in_blocks = cached.view(num_kv_heads, -1, BLOCK_SIZE, *cached.shape[2:]).index_select(1, blocks)
            return in_blocks.view(num_kv_heads, num_seqs, -1, *cached.shape[2:])

        def context(cached: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
            numbers = gather(cached)
            states = numbers if scales is None else dequantize(numbers, gather(scales), heads.dtype)
            # Slots beyond a sequence's end may hold NaN, and 0 x NaN is NaN.
            return torch.where(attended_to[..., None], states, 0).to(heads.dtype)

        key, value = context(cache.keys, cache.key_scales), context(cache.values, cache.value_scales)
        num_heads = all_heads - 2 * num_kv_heads
        query = heads[:, :num_heads].reshape(num_seqs, num_kv_heads, -1, head_size).transpose(0, 1)
        scores = torch.matmul(query * head_size**-0.5, key.transpose(-1, -2))
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.masked_fill(~attended_to[:, None], -torch.inf).softmax(-1, dtype=dtype)
        return torch.matmul(weights.to(value.dtype), value).transpose(0, 1).flatten(1, 2)

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, cache: LayerCache,
    ) -> None:  # fmt: skip
        num_kv_heads = len(cache.keys)
        query_and_key = heads[:, :-num_kv_heads]
        query_and_key.copy_(apply_rotary(query_and_key, cos[positions, None], sin[positions, None]))
        _write(heads[:, -2 * num_kv_heads : -num_kv_heads], slots, cache.keys, cache.key_scales)
        _write(heads[:, -num_kv_heads:], slots, cache.values, cache.value_scales)


def _write(states: torch.Tensor, slots: torch.Tensor, cached: torch.Tensor, scales: torch.Tensor | None) -> None:
    """Writes `states` (tokens, KV heads, head size) to the cache, and rounds them to what it holds."""
    numbers = states
    if scales is not None:
        numbers, scale = quantize(states)
        scales.index_copy_(1, slots, scale.t())
        states.copy_(dequantize(numbers, scale, states.dtype))
    cached.index_copy_(1, slots, numbers.transpose(0, 1).to(cached.dtype))
