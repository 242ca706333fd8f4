"""Attention over the paged KV cache: the seam between the model's arithmetic and a device's kernels.

A backend is made for a KVCache. `plan` runs once a step, on the host, and turns block tables into whatever its kernels
take; what it returns is called by every layer with that layer's new queries, keys and values. Decoding sequences stand
first in a step, so that a backend can take them together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from .kv_cache import BLOCK_SIZE, KVCache


@dataclass(frozen=True)
class Rows:
    """The consecutive rows of one sequence in a step: its tokens `start` to `end`, which attend to all before them."""

    seq_id: int
    start: int
    end: int
    block_table: list[int]

    @property
    def num_blocks(self) -> int:
        return -(-self.end // BLOCK_SIZE)


# (layer, query, key, value) -> what was attended to, shaped like query (tokens, query heads, head size); key and value
# are (tokens, heads, head size).
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(Protocol):
    """What a device's backend offers."""

    def plan(self, rows: list[Rows]) -> Attend:
        """Attention for a step of these rows: the single ones (decode) first, by ascending `end`."""
        ...


class _Gathered:
    """Keys and values of a group of sequences laid side by side, in memory that is used again for the next group.

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
    """Sequences that attend together, `rows` of the step; `blocks` (sequences * blocks of the longest,).

    `mask` is 0 where a query may look and -inf where not: (sequences, 1, keys) or, for a chunk, (queries, keys).
    `positions` (sequences,) are the new tokens' where everything before them is in `gathered` already, else None.
    """

    rows: slice
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


class TorchAttention:
    """torch's own operators on keys and values gathered from their blocks: any device, any dtype."""

    # Of keys to gather at a time on a CPU: they should still be in its cache when they are read back.
    CPU_GROUP_BYTES = 4 * 1024 * 1024
    # On a CPU, what the decoding sequences have gathered is kept from step to step, up to as much.
    KEPT_BYTES = 1024 * 1024 * 1024

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._like = cache.keys[0]
        self._is_cpu = self._like.device.type == "cpu"
        self._block_bytes = self._like[:, 0].numel() * self._like.element_size()
        # Elsewhere each group costs launches, and there is memory for all.
        self._group_blocks = max(1, self.CPU_GROUP_BYTES // self._block_bytes) if self._is_cpu else 2**31
        self._kept_blocks = self.KEPT_BYTES // (2 * len(cache.keys) * self._block_bytes) if self._is_cpu else 0
        self._shared = _Gathered(1)
        self._kept: dict[tuple[int, ...], _Kept] = {}

    def plan(self, rows: list[Rows]) -> Attend:
        slots = [
            row.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for row in rows
            for position in range(row.start, row.end)
        ]
        num_decoding = sum(row.end - row.start == 1 for row in rows)
        decoding = self._decoding_groups(rows[:num_decoding])
        chunks, first_row = [], num_decoding
        for row in rows[num_decoding:]:
            chunks.append(self._chunk(row, first_row))
            first_row += row.end - row.start
        return _Planned(self._cache, self._index(slots), decoding, chunks)

    def _decoding_groups(self, rows: list[Rows]) -> list[_Group]:
        groups: list[_Group] = []
        before, self._kept = self._kept, {}
        start = room = 0
        for stop in range(1, len(rows) + 1):
            # Rows come by length, so that the last of a group is its longest and little is filled up.
            if stop == len(rows) or rows[stop].num_blocks * (stop + 1 - start) > self._group_blocks:
                room += rows[stop - 1].num_blocks * (stop - start)
                keeps = room <= self._kept_blocks
                groups.append(self._decoding_group(rows[start:stop], start, before if keeps else None))
                start = stop
        return groups

    def _decoding_group(self, rows: list[Rows], first_row: int, before: dict[tuple[int, ...], _Kept] | None) -> _Group:
        """`before` is what the last step has kept, None where this group's is not to be."""
        num_blocks, null = rows[-1].num_blocks, self._cache.null_block
        tables = [(row.block_table + [null] * num_blocks)[:num_blocks] for row in rows]
        blocks = self._index([block for table in tables for block in table])
        ends = torch.tensor([row.end for row in rows])
        mask = self._mask(torch.arange(num_blocks * BLOCK_SIZE) >= ends[:, None, None])
        place = slice(first_row, first_row + len(rows))
        if before is None:
            return _Group(place, len(rows), blocks, mask, self._shared)
        key = tuple(row.seq_id for row in rows)
        kept = before.pop(key, None)
        goes_on = (
            kept is not None
            and kept.num_blocks == num_blocks
            and kept.ends == [row.start for row in rows]  # each has grown by the token of this step
        )
        if kept is not None:
            gathered = kept.gathered
        else:  # some other group's memory, if any is left
            gathered = before.popitem()[1].gathered if before else _Gathered(len(self._cache.keys))
        self._kept[key] = _Kept([row.end for row in rows], num_blocks, gathered)
        return _Group(place, len(rows), blocks, mask, gathered, ends - 1 if goes_on else None)

    def _chunk(self, row: Rows, first_row: int) -> _Group:
        positions = torch.arange(row.start, row.end)
        hidden = torch.arange(row.num_blocks * BLOCK_SIZE) > positions[:, None]
        blocks = self._index(row.block_table[: row.num_blocks])
        return _Group(slice(first_row, first_row + len(positions)), 1, blocks, self._mask(hidden), self._shared)

    def _index(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._like.device)

    def _mask(self, hidden: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(hidden.shape, dtype=self._like.dtype).masked_fill_(hidden, -torch.inf)
        return mask.to(self._like.device)


class _Planned:
    def __init__(self, cache: KVCache, slots: torch.Tensor, decoding: list[_Group], chunks: list[_Group]) -> None:
        self._cache = cache
        self._slots = slots
        self._decoding = decoding
        self._chunks = chunks

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self._cache.write(layer, self._slots, key, value)
        attended = [
            self._decode(query[group.rows], group, *self._side_by_side(layer, group, key, value))
            for group in self._decoding
        ]
        attended += [self._prefill(query[group.rows], group, *self._gather(layer, group)) for group in self._chunks]
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
        keys[places] = key[group.rows].transpose(0, 1)
        values[places] = value[group.rows].transpose(0, 1)
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
