"""Attention that reads the paged KV cache in place: for a GPU, and for a static decode step on any device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from .attention import Attend, TokenRange, slot_mapping, split_phases, token_positions
from .kv_cache import BLOCK_SIZE, KVCache, LayerCache
from .prefill_attention import PrefillAttention, SequenceLengths


class PagedKernels(Protocol):
    """The kernels of one layer. `kernels.decode_attention` and `kernels.rotary` describe the arguments."""

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        block_tables: torch.Tensor, cache: LayerCache,
    ) -> torch.Tensor: ...  # fmt: skip

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, cache: LayerCache,
    ) -> None: ...  # fmt: skip


class PagedAttention:
    """Decoding sequences by a paged decode kernel, prompt chunks by one of torch's kernels for many queries."""

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

    def plan(self, ranges: list[TokenRange]) -> "_PagedPlan":
        decoding, prefills = split_phases(ranges)
        arrays = self.decode_arrays(decoding, len(decoding))
        if prefills:
            arrays |= _prefill_arrays(prefills)
        return _PagedPlan(self, arrays, len(decoding), prefills)

    def decode_arrays(self, ranges: list[TokenRange], num_rows: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `num_rows` decode rows: one row per range, then padding rows."""
        positions = np.full(num_rows, -1, np.int32)
        block_tables = np.full((num_rows, self.max_blocks), self._cache.null_block, np.int32)
        for row, tokens in enumerate(ranges):
            positions[row] = tokens.start
            block_tables[row, : len(tokens.block_table)] = tokens.block_table
        return {"decode_positions": positions, "decode_block_tables": block_tables}

    def decode(self, staged: Mapping[str, torch.Tensor], layer: int, heads: torch.Tensor) -> torch.Tensor:
        """Attention of the decode rows, one row of `heads` each. `staged` holds the arrays of `decode_arrays`."""
        return self._kernels.decode(
            heads, self._cos, self._sin, staged["decode_positions"], staged["decode_block_tables"],
            self._cache.layers[layer],
        )  # fmt: skip

    def bind_decode(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        """Returns the attention of a step that has only decode rows."""
        return partial(self.decode, staged)

    def prefill(
        self, staged: Mapping[str, torch.Tensor], lengths: SequenceLengths, layer: int, heads: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the prompt chunks. `staged` holds the arrays of `_prefill_arrays`."""
        cache = self._cache.layers[layer]
        self._kernels.rotate_and_cache(
            heads, self._cos, self._sin, staged["prefill_positions"], staged["prefill_slots"], cache
        )
        num_kv_heads = len(cache.keys)
        query = heads[:, : -2 * num_kv_heads]
        if "context_slots" not in staged:  # every prefill begins its sequence, so the step's own keys are all keys
            return self._prefill(query, heads[:, -2 * num_kv_heads : -num_kv_heads], heads[:, -num_kv_heads:], lengths)
        return self._prefill(query, *cache.gather(staged["context_slots"], heads.dtype), lengths)


def _prefill_arrays(prefills: list[TokenRange]) -> dict[str, np.ndarray]:
    arrays = {
        "prefill_positions": token_positions(prefills),
        "prefill_slots": slot_mapping(prefills),
        "cu_seqlens_q": np.cumsum([0, *(tokens.num_tokens for tokens in prefills)], dtype=np.int32),
        "cu_seqlens_k": np.cumsum([0, *(tokens.end for tokens in prefills)], dtype=np.int32),
    }
    if any(tokens.start for tokens in prefills):
        arrays["context_slots"] = slot_mapping([replace(tokens, start=0) for tokens in prefills])
    return arrays


@dataclass(frozen=True)
class _PagedPlan:
    attention: PagedAttention
    arrays: Mapping[str, np.ndarray]
    num_decoding: int
    prefills: list[TokenRange]

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        if not self.prefills:
            return self.attention.bind_decode(staged)
        seqlens = [tokens.num_tokens for tokens in self.prefills], [tokens.end for tokens in self.prefills]
        lengths = SequenceLengths(staged["cu_seqlens_q"], staged["cu_seqlens_k"], *seqlens)
        return partial(self._attend, staged, lengths)

    def _attend(
        self, staged: Mapping[str, torch.Tensor], lengths: SequenceLengths, layer: int, heads: torch.Tensor
    ) -> torch.Tensor:
        prefilled = self.attention.prefill(staged, lengths, layer, heads[self.num_decoding :])
        if not self.num_decoding:
            return prefilled
        decoded = self.attention.decode(staged, layer, heads[: self.num_decoding])
        return torch.cat((decoded, prefilled))
