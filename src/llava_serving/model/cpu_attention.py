"""Attention for a CPU: torch's own products on keys and values that are gathered from their blocks and kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from .attention import Attend, Span, positions_of, rotated, slots_of
from .kv_cache import BLOCK_SIZE, KVCache


class _Gathered:
    """Keys and values of a group of sequences laid side by side, in memory that the next group uses again.

    Fresh memory for every layer would cost a page fault for every 4 KiB of it.
    """

    def __init__(self, num_layers: int) -> None:
        self._memory: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def room(self, layer: int, like: torch.Tensor, num_blocks: int) -> list[torch.Tensor]:
        """For keys and for values: (heads, blocks, BLOCK_SIZE, head size)."""
        shape = (like.shape[0], num_blocks, *like.shape[2:])
        size = math.prod(shape)
        layer %= len(self._memory)  # what is not kept is read at once, and one layer's memory does for all
        if not self._memory[layer] or self._memory[layer][0].numel() < size:
            self._memory[layer] = [like.new_empty(size), like.new_empty(size)]
        return [memory[:size].view(shape) for memory in self._memory[layer]]


@dataclass(frozen=True)
class _Group:
    """Sequences that attend together, `tokens` of the step; `blocks` (sequences * blocks of the longest,).

    `mask` is 0 where a query may look and -inf where not: (sequences, 1, keys) or, for a chunk, (queries, keys).
    `positions` (sequences,) are the new tokens' where everything before them is in `gathered` already, else None.
    """

    tokens: slice
    num_seqs: int
    blocks: torch.Tensor
    mask: torch.Tensor
    gathered: _Gathered
    positions: torch.Tensor | None = None


@dataclass(frozen=True)
class _Kept:
    """What a decoding group of the last step has gathered: up to `ends` of its sequences."""

    ends: list[int]
    num_blocks: int
    gathered: _Gathered


class CpuAttention:
    """Groups decoding sequences so that the keys of a group stay in the processor's cache."""

    # Of keys to gather at a time: they should still be in its cache when they are read back.
    GROUP_BYTES = 4 * 1024 * 1024
    # What the decoding sequences have gathered is kept from step to step, up to as much.
    KEPT_BYTES = 1024 * 1024 * 1024
    # Masked positions have weight 0, but 0 x stale NaN is NaN.
    needs_cleared_blocks = True

    def __init__(self, cache: KVCache, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """`cos` and `sin` (context, head size)."""
        self._cache = cache
        self._cos, self._sin = cos, sin
        self._like = cache.keys[0]
        block_bytes = self._like[:, 0].numel() * self._like.element_size()
        self._group_blocks = max(1, self.GROUP_BYTES // block_bytes)
        self._kept_blocks = self.KEPT_BYTES // (2 * len(cache.keys) * block_bytes)
        self._shared = _Gathered(1)
        self._kept: dict[tuple[int, ...], _Kept] = {}

    def plan(self, spans: list[Span]) -> "_Planned":
        num_decoding = sum(span.num_tokens == 1 for span in spans)
        decoding = self._decoding_groups(spans[:num_decoding])
        chunks, first = [], num_decoding
        for span in spans[num_decoding:]:
            chunks.append(self._chunk(span, first))
            first += span.num_tokens
        positions = torch.from_numpy(positions_of(spans))
        slots = torch.from_numpy(slots_of(spans))
        cos, sin = self._cos[positions, None], self._sin[positions, None]  # (tokens, 1, head size)
        return _Planned(self._cache, slots, cos, sin, decoding, chunks)

    def _decoding_groups(self, spans: list[Span]) -> list[_Group]:
        groups: list[_Group] = []
        before, self._kept = self._kept, {}
        start = room = 0
        for stop in range(1, len(spans) + 1):
            # Spans come by length, so that the last of a group is its longest and little is filled up.
            if stop == len(spans) or spans[stop].num_blocks * (stop + 1 - start) > self._group_blocks:
                room += spans[stop - 1].num_blocks * (stop - start)
                keeps = room <= self._kept_blocks
                groups.append(self._decoding_group(spans[start:stop], start, before if keeps else None))
                start = stop
        return groups

    def _decoding_group(self, spans: list[Span], first: int, before: dict[tuple[int, ...], _Kept] | None) -> _Group:
        """`before` is what the last step has kept, None where this group's is not to be."""
        num_blocks, null = spans[-1].num_blocks, self._cache.null_block
        tables = [(span.block_table + [null] * num_blocks)[:num_blocks] for span in spans]
        blocks = torch.tensor([block for table in tables for block in table])
        ends = torch.tensor([span.end for span in spans])
        mask = self._mask(torch.arange(num_blocks * BLOCK_SIZE) >= ends[:, None, None])
        tokens = slice(first, first + len(spans))
        if before is None:
            return _Group(tokens, len(spans), blocks, mask, self._shared)
        key = tuple(span.seq_id for span in spans)
        kept = before.pop(key, None)
        goes_on = (
            kept is not None
            and kept.num_blocks == num_blocks
            and kept.ends == [span.start for span in spans]  # each has grown by the token of this step
        )
        if kept is not None:
            gathered = kept.gathered
        else:  # some other group's memory, if any is left
            gathered = before.popitem()[1].gathered if before else _Gathered(len(self._cache.keys))
        self._kept[key] = _Kept([span.end for span in spans], num_blocks, gathered)
        return _Group(tokens, len(spans), blocks, mask, gathered, ends - 1 if goes_on else None)

    def _chunk(self, span: Span, first: int) -> _Group:
        positions = torch.arange(span.start, span.end)
        hidden = torch.arange(span.num_blocks * BLOCK_SIZE) > positions[:, None]
        blocks = torch.tensor(span.block_table[: span.num_blocks])
        return _Group(slice(first, first + len(positions)), 1, blocks, self._mask(hidden), self._shared)

    def _mask(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self._like.dtype).masked_fill_(hidden, -torch.inf)


class _Planned:
    """One step's groups; called by every layer. Nothing of it needs staging: host and device are one."""

    arrays: Mapping[str, np.ndarray] = {}

    def __init__(
        self, cache: KVCache, slots: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, decoding: list[_Group],
        chunks: list[_Group],
    ) -> None:  # fmt: skip
        self._cache = cache
        self._slots = slots
        self._cos, self._sin = cos, sin
        self._decoding = decoding
        self._chunks = chunks

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend:
        return self

    def __call__(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        num_kv_heads = len(self._cache.keys[layer])
        value = heads[:, -num_kv_heads:]
        turned = rotated(heads[:, :-num_kv_heads], self._cos, self._sin)
        query, key = turned[:, :-num_kv_heads], turned[:, -num_kv_heads:]
        self._cache.write(layer, self._slots, key, value)
        attended = [
            self._decode(query[group.tokens], group, *self._side_by_side(layer, group, key, value))
            for group in self._decoding
        ]
        attended += [self._prefill(query[group.tokens], group, *self._gather(layer, group)) for group in self._chunks]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _decode(self, query: torch.Tensor, group: _Group, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """One query a sequence, by two products: kernels made for many queries are several times slower here."""
        # (heads, sequences, queries a head, head size)
        queries = query.reshape(len(query), len(keys), -1, query.shape[-1]).transpose(0, 1)
        scores = torch.matmul(queries * query.shape[-1] ** -0.5, keys.transpose(-1, -2)).add_(group.mask)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.matmul(weights, values).transpose(0, 1).flatten(1, 2)

    def _prefill(self, query: torch.Tensor, group: _Group, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=group.mask,
            enable_gqa=query.shape[1] != keys.shape[0],
        )
        return attended[0].transpose(0, 1)

    def _side_by_side(
        self, layer: int, group: _Group, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of decoding sequences: gathered, or the step's own added to what was gathered before."""
        if group.positions is None:
            return self._gather(layer, group)
        keys, values = self._views(layer, group)
        places = (slice(None), torch.arange(group.num_seqs), group.positions)
        keys[places] = key[group.tokens].transpose(0, 1)
        values[places] = value[group.tokens].transpose(0, 1)
        return keys, values

    def _gather(self, layer: int, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        rooms = self._rooms(layer, group)
        for cached, room in zip((self._cache.keys[layer], self._cache.values[layer]), rooms, strict=True):
            torch.index_select(cached, 1, group.blocks, out=room)
        return self._views(layer, group)

    def _views(self, layer: int, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Each (heads, sequences, keys, head size)."""
        keys, values = (room.view(len(room), group.num_seqs, -1, room.shape[-1]) for room in self._rooms(layer, group))
        return keys, values

    def _rooms(self, layer: int, group: _Group) -> list[torch.Tensor]:
        return group.gathered.room(layer, self._cache.keys[layer], len(group.blocks))
