"""Attention by torch's own products, over keys and values that are gathered from their blocks into one buffer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from .attention import Attend
from .kv_cache import KVCache
from .rotary import apply_rotary


class GatherBuffer:
    """Contiguous keys and values of a group of sequences, in memory that later groups use again.

    New memory for every layer would cost a page fault per 4 KiB.
    """

    def __init__(self, num_layers: int) -> None:
        """With one layer, all layers share its memory: each reads its keys and values before the next gathers."""
        self._memory: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def views(self, layer: int, cache: KVCache, num_blocks: int) -> list[torch.Tensor]:
        """Returns uninitialised memory for keys and for values: each (heads, blocks, BLOCK_SIZE, head size)."""
        cached = cache.keys[layer]
        shape = (cached.shape[0], num_blocks, *cached.shape[2:])
        size = math.prod(shape)
        layer %= len(self._memory)
        if not self._memory[layer] or self._memory[layer][0].numel() < size:
            self._memory[layer] = [cached.new_empty(size), cached.new_empty(size)]
        return [memory[:size].view(shape) for memory in self._memory[layer]]


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences that attend together: the slice `tokens` of the step's tokens.

    `blocks` (sequences * blocks of the longest,) are gathered into `buffer`. `mask` is 0 where a query may attend and
    -inf elsewhere: (sequences, 1, keys) or, for a prefill, (queries, keys). `new_positions` (sequences,) are those of
    the step's own keys if `buffer` already holds all keys before them. Otherwise it is None.
    """

    tokens: slice
    num_seqs: int
    blocks: torch.Tensor
    mask: torch.Tensor
    buffer: GatherBuffer
    new_positions: torch.Tensor | None = None


class GatheredAttention:
    """The attention of one step on a CPU, called by every layer. It stages no arrays: the host is the device."""

    arrays: Mapping[str, np.ndarray] = {}

    def __init__(
        self, cache: KVCache, slots: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        decoding: Sequence[SequenceGroup], prefills: Sequence[SequenceGroup],
    ) -> None:  # fmt: skip
        """`slots` (tokens,); `cos` and `sin` (tokens, 1, head size)."""
        self._cache = cache
        self._slots = slots
        self._cos, self._sin = cos, sin
        self._decoding = decoding
        self._prefills = prefills

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        return self

    def __call__(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        num_kv_heads = len(self._cache.keys[layer])
        value = heads[:, -num_kv_heads:]
        query_and_key = apply_rotary(heads[:, :-num_kv_heads], self._cos, self._sin)
        query, key = query_and_key[:, :-num_kv_heads], query_and_key[:, -num_kv_heads:]
        self._cache.write(layer, self._slots, key, value)
        outputs = [
            _decode(query[group.tokens], group.mask, *self._decode_context(layer, group, key, value))
            for group in self._decoding
        ]
        outputs += [_prefill(query[group.tokens], group.mask, *self._gather(layer, group)) for group in self._prefills]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decode_context(
        self, layer: int, group: SequenceGroup, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all keys and values of a decoding group, each (heads, sequences, keys, head size).

        Only the step's own `key` and `value` are copied where the buffer already holds the others.
        """
        if group.new_positions is None:
            return self._gather(layer, group)
        keys, values = self._context(layer, group)
        index = (slice(None), torch.arange(group.num_seqs), group.new_positions)
        keys[index] = key[group.tokens].transpose(0, 1)
        values[index] = value[group.tokens].transpose(0, 1)
        return keys, values

    def _gather(self, layer: int, group: SequenceGroup) -> tuple[torch.Tensor, torch.Tensor]:
        buffers = group.buffer.views(layer, self._cache, len(group.blocks))
        for cached, buffer in zip((self._cache.keys[layer], self._cache.values[layer]), buffers, strict=True):
            torch.index_select(cached, 1, group.blocks, out=buffer)
        return self._context(layer, group)

    def _context(self, layer: int, group: SequenceGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what the group's buffer holds as (heads, sequences, keys, head size), for keys and for values."""
        buffers = group.buffer.views(layer, self._cache, len(group.blocks))
        keys, values = (buffer.view(len(buffer), group.num_seqs, -1, buffer.shape[-1]) for buffer in buffers)
        return keys, values


def _decode(query: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One query per sequence, by two products: kernels made for many queries are several times slower here."""
    # (heads, sequences, queries per head, head size)
    queries = query.reshape(len(query), len(keys), -1, query.shape[-1]).transpose(0, 1)
    scores = torch.matmul(queries * query.shape[-1] ** -0.5, keys.transpose(-1, -2)).add_(mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(weights, values).transpose(0, 1).flatten(1, 2)


def _prefill(query: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=mask,
        enable_gqa=query.shape[1] != keys.shape[0],
    )
    return attended[0].transpose(0, 1)
