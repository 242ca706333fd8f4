"""Attention over the paged KV cache: the seam between the model's arithmetic and a device's kernels.

A backend is made for a KVCache. `plan` runs once a step, on the host, and turns block tables into whatever its kernels
take; what it returns is called by every layer with that layer's new queries, keys and values. Decoding sequences stand
first in a step, so that a backend can take them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from .kv_cache import BLOCK_SIZE, KVCache


@dataclass(frozen=True)
class Rows:
    """The consecutive rows of one sequence in a step: its tokens `start` to `end`, which attend to all before them."""

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


@dataclass(frozen=True)
class _Group:
    """Sequences that attend together, `rows` of the step; `blocks` (sequences * blocks of the longest,).

    `mask` is 0 where a query may look and -inf where not: (sequences, 1, keys) or, for a chunk, (queries, keys).
    """

    rows: slice
    num_seqs: int
    blocks: torch.Tensor
    mask: torch.Tensor


class TorchAttention:
    """torch's own operators on keys and values gathered from their blocks: any device, any dtype."""

    # Of keys to gather at a time. On a CPU the workspace should stay in cache until it is read back; elsewhere each
    # group costs launches, and there is memory for all.
    CPU_GROUP_BYTES = 4 * 1024 * 1024
    GROUP_BYTES = 1024 * 1024 * 1024

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._like = cache.keys[0]
        # Gathered into again and again: fresh memory for every layer costs a page fault for every 4 KiB of it.
        self._workspaces = [self._like.new_empty(0), self._like.new_empty(0)]
        group_bytes = self.CPU_GROUP_BYTES if self._like.device.type == "cpu" else self.GROUP_BYTES
        self._group_blocks = max(1, group_bytes // (self._like[:, 0].numel() * self._like.element_size()))

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
        return _Planned(self._cache, self._index(slots), decoding, chunks, self._workspaces)

    def _decoding_groups(self, rows: list[Rows]) -> list[_Group]:
        groups: list[_Group] = []
        start = 0
        for stop in range(1, len(rows) + 1):
            # Rows come by length, so that the last of a group is its longest and little is filled up.
            if stop == len(rows) or rows[stop].num_blocks * (stop + 1 - start) > self._group_blocks:
                groups.append(self._decoding_group(rows[start:stop], start))
                start = stop
        return groups

    def _decoding_group(self, rows: list[Rows], first_row: int) -> _Group:
        num_blocks, null = rows[-1].num_blocks, self._cache.null_block
        blocks = [
            block
            for row in rows
            for block in row.block_table[:num_blocks] + [null] * (num_blocks - len(row.block_table))
        ]
        ends = torch.tensor([row.end for row in rows])
        hidden = torch.arange(num_blocks * BLOCK_SIZE) >= ends[:, None, None]
        return _Group(slice(first_row, first_row + len(rows)), len(rows), self._index(blocks), self._mask(hidden))

    def _chunk(self, row: Rows, first_row: int) -> _Group:
        positions = torch.arange(row.start, row.end)
        hidden = torch.arange(row.num_blocks * BLOCK_SIZE) > positions[:, None]
        blocks = self._index(row.block_table[: row.num_blocks])
        return _Group(slice(first_row, first_row + len(positions)), 1, blocks, self._mask(hidden))

    def _index(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._like.device)

    def _mask(self, hidden: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(hidden.shape, dtype=self._like.dtype).masked_fill_(hidden, -torch.inf)
        return mask.to(self._like.device)


class _Planned:
    def __init__(
        self,
        cache: KVCache,
        slots: torch.Tensor,
        decoding: list[_Group],
        chunks: list[_Group],
        workspaces: list[torch.Tensor],
    ) -> None:
        self._cache = cache
        self._slots = slots
        self._decoding = decoding
        self._chunks = chunks
        self._workspaces = workspaces

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self._cache.write(layer, self._slots, key, value)
        attended = [self._decode(layer, query[group.rows], group) for group in self._decoding]
        attended += [self._prefill(layer, query[group.rows], group) for group in self._chunks]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _decode(self, layer: int, query: torch.Tensor, group: _Group) -> torch.Tensor:
        """One query a sequence, by two products: kernels made for many queries are several times slower here."""
        keys, values = self._gathered(layer, group)  # (heads, sequences, keys, head size)
        # (heads, sequences, queries a head, head size)
        queries = query.reshape(len(query), len(keys), -1, query.shape[-1]).transpose(0, 1)
        scores = torch.matmul(queries * query.shape[-1] ** -0.5, keys.transpose(-1, -2)).add_(group.mask)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.matmul(weights, values).transpose(0, 1).flatten(1, 2)

    def _prefill(self, layer: int, query: torch.Tensor, group: _Group) -> torch.Tensor:
        keys, values = self._gathered(layer, group)
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=group.mask,
            enable_gqa=query.shape[1] != keys.shape[0],
        )
        return attended[0].transpose(0, 1)

    def _gathered(self, layer: int, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (heads, sequences, keys, head size), in the workspaces."""
        keys, values = (
            self._gather(number, cached, group)
            for number, cached in enumerate((self._cache.keys[layer], self._cache.values[layer]))
        )
        return keys, values

    def _gather(self, number: int, cached: torch.Tensor, group: _Group) -> torch.Tensor:
        heads, _, _, head_size = cached.shape
        shape = (heads, len(group.blocks), BLOCK_SIZE, head_size)
        size = heads * len(group.blocks) * BLOCK_SIZE * head_size
        if self._workspaces[number].numel() < size:
            self._workspaces[number] = cached.new_empty(size)
        room = self._workspaces[number][:size].view(shape)
        torch.index_select(cached, 1, group.blocks, out=room)
        return room.view(heads, group.num_seqs, -1, head_size)
