"""Attention that reads the paged KV cache where it lies: for a GPU, and for a static decode step on any device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from .attention import Attend, Span, positions_of, rotated, slots_of
from .kv_cache import BLOCK_SIZE, KVCache
from .prefill_attention import Extents, PrefillAttention


class PagedKernels(Protocol):
    """What a device offers for one layer; every argument as in `kernels.decode_attention` and `kernels.rotary`."""

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> torch.Tensor: ...  # fmt: skip

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> None: ...  # fmt: skip


class TorchKernels:
    """torch's own operators on any device: the reference of Triton's, and what runs where there is no Triton."""

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        num_seqs, all_heads, size = heads.shape
        num_kv_heads, num_slots, _ = keys.shape
        positions = positions.long()
        at = positions.clamp(min=0)
        block = tables.gather(1, (at // BLOCK_SIZE)[:, None])[:, 0].long()
        slots = torch.where(positions >= 0, block * BLOCK_SIZE + at % BLOCK_SIZE, num_slots - BLOCK_SIZE)
        self.rotate_and_cache(heads, cos, sin, at, slots, keys, values)
        known = torch.arange(tables.shape[1] * BLOCK_SIZE, device=heads.device) <= at[:, None]
        tables = torch.where(positions[:, None] >= 0, tables, num_slots // BLOCK_SIZE - 1).flatten()
        # (KV heads, sequences, tokens, head size); what lies beyond a sequence may be NaN
        gathered = (
            kept.view(num_kv_heads, -1, BLOCK_SIZE, size).index_select(1, tables).view(num_kv_heads, num_seqs, -1, size)
            for kept in (keys, values)
        )
        key, value = (torch.where(known[..., None], part, 0).to(heads.dtype) for part in gathered)
        query = heads[:, : all_heads - 2 * num_kv_heads].reshape(num_seqs, num_kv_heads, -1, size).transpose(0, 1)
        scores = torch.matmul(query * size**-0.5, key.transpose(-1, -2)).masked_fill(~known[:, None], -torch.inf)
        attended = torch.matmul(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)
        return attended.transpose(0, 1).flatten(1, 2)

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    ) -> None:  # fmt: skip
        num_kv_heads = len(keys)
        turning = heads[:, :-num_kv_heads]
        turning.copy_(rotated(turning, cos[positions, None], sin[positions, None]))
        keys.index_copy_(1, slots, heads[:, -2 * num_kv_heads : -num_kv_heads].transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, slots, heads[:, -num_kv_heads:].transpose(0, 1).to(values.dtype))


class PagedAttention:
    """Decoding sequences by a paged decode kernel, chunks of prompts by one of torch's kernels for many queries."""

    needs_cleared_blocks = False

    def __init__(
        self, cache: KVCache, cos: torch.Tensor, sin: torch.Tensor, kernels: PagedKernels, prefill: PrefillAttention
    ) -> None:
        """`cos` and `sin` (context, head size)."""
        self._cache = cache
        self._cos, self._sin = cos, sin
        self._kernels = kernels
        self._prefill = prefill
        self.max_blocks = -(-len(cos) // BLOCK_SIZE)

    def plan(self, spans: list[Span]) -> "_Plan":
        num_decoding = sum(span.num_tokens == 1 for span in spans)
        arrays = self.decode_arrays(spans[:num_decoding], num_decoding)
        chunks = spans[num_decoding:]
        if chunks:
            arrays |= _chunk_arrays(chunks)
        return _Plan(self, arrays, num_decoding, chunks)

    def decode_arrays(self, spans: list[Span], num_rows: int) -> dict[str, np.ndarray]:
        """For `num_rows` rows, the spans' first; the others are padding."""
        positions = np.full(num_rows, -1, np.int32)
        tables = np.full((num_rows, self.max_blocks), self._cache.null_block, np.int32)
        for row, span in enumerate(spans):
            positions[row] = span.start
            tables[row, : len(span.block_table)] = span.block_table
        return {"decode_positions": positions, "decode_tables": tables}

    def decode(self, staged: Mapping[str, torch.Tensor], layer: int, heads: torch.Tensor) -> torch.Tensor:
        """`staged` as `decode_arrays` names it; one row of `heads` for each."""
        return self._kernels.decode(
            heads, self._cos, self._sin, staged["decode_positions"], staged["decode_tables"],
            self._cache.key_slots[layer], self._cache.value_slots[layer],
        )  # fmt: skip

    def bound_decode(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        """For a step of nothing but the rows of `decode_arrays`."""
        return partial(self.decode, staged)

    def prefill(
        self, staged: Mapping[str, torch.Tensor], extents: Extents, layer: int, heads: torch.Tensor
    ) -> torch.Tensor:
        """`staged` as `_chunk_arrays` names it."""
        keys, values = self._cache.key_slots[layer], self._cache.value_slots[layer]
        self._kernels.rotate_and_cache(
            heads, self._cos, self._sin, staged["chunk_positions"], staged["chunk_slots"], keys, values
        )
        num_kv_heads = len(keys)
        query = heads[:, : -2 * num_kv_heads]
        if "context_slots" not in staged:  # every chunk begins its sequence: its own keys are all there are
            return self._prefill(query, heads[:, -2 * num_kv_heads : -num_kv_heads], heads[:, -num_kv_heads:], extents)
        context = (kept.index_select(1, staged["context_slots"]).transpose(0, 1) for kept in (keys, values))
        key, value = (part.to(heads.dtype) for part in context)
        return self._prefill(query, key, value, extents)


def _chunk_arrays(chunks: list[Span]) -> dict[str, np.ndarray]:
    arrays = {
        "chunk_positions": positions_of(chunks),
        "chunk_slots": slots_of(chunks),
        "chunk_queries": np.cumsum([0, *(chunk.num_tokens for chunk in chunks)], dtype=np.int32),
        "chunk_keys": np.cumsum([0, *(chunk.end for chunk in chunks)], dtype=np.int32),
    }
    if any(chunk.start for chunk in chunks):
        arrays["context_slots"] = slots_of([replace(chunk, start=0) for chunk in chunks])
    return arrays


@dataclass(frozen=True)
class _Plan:
    attention: PagedAttention
    arrays: Mapping[str, np.ndarray]
    num_decoding: int
    chunks: list[Span]

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        if not self.chunks:
            return self.attention.bound_decode(staged)
        lengths = [chunk.num_tokens for chunk in self.chunks], [chunk.end for chunk in self.chunks]
        return partial(self._attend, staged, Extents(staged["chunk_queries"], staged["chunk_keys"], *lengths))

    def _attend(
        self, staged: Mapping[str, torch.Tensor], extents: Extents, layer: int, heads: torch.Tensor
    ) -> torch.Tensor:
        attended = self.attention.prefill(staged, extents, layer, heads[self.num_decoding :])
        if not self.num_decoding:
            return attended
        decoded = self.attention.decode(staged, layer, heads[: self.num_decoding])
        return torch.cat((decoded, attended))
