"""Decode attention over a paged cache in which every block that is nobody's is NaN."""

from collections.abc import Callable

import torch

from llava_serving.model.kernels.decode_attention import decode_attention
from llava_serving.model.kv_cache import BLOCK_SIZE

from .poison import poisoned
from .reference import angles, relative_error, rotated
from .sizes import Sizes

FREE_BLOCKS = 8


class PagedCase:
    """Sequences in shuffled blocks, in as many layers as take turns."""

    def __init__(self, sizes: Sizes, num_seqs: int) -> None:
        shape = sizes.shape
        self.lengths = sizes.lengths(num_seqs)
        counts = [length // BLOCK_SIZE + 1 for length in self.lengths]
        total = sum(counts) + FREE_BLOCKS
        blocks = torch.randperm(total, device=sizes.device)
        self.tables = torch.full((num_seqs, -(-shape.context // BLOCK_SIZE)), total, device=sizes.device).int()
        for row, part in enumerate(blocks[: sum(counts)].split(counts)):
            self.tables[row, : len(part)] = part.int()
        self.positions = torch.tensor(self.lengths, device=sizes.device).int()
        self.slots = [self._slots(row) for row in range(num_seqs)]
        layer_bytes = 2 * shape.hidden * (total + 1) * BLOCK_SIZE * sizes.dtype.itemsize
        self.layers = max(2, -(-sizes.rotated_bytes // layer_bytes))
        memory = (2, self.layers, shape.heads, (total + 1) * BLOCK_SIZE, shape.head_size)
        self.keys, self.values = torch.full(memory, torch.nan, dtype=sizes.dtype, device=sizes.device)
        written = torch.cat([slots[:-1] for slots in self.slots])
        for kept in (*self.keys, *self.values):
            kept[:, written] = torch.randn(shape.heads, len(written), shape.head_size, device=sizes.device).to(kept)
        self.heads = torch.randn(num_seqs, 3 * shape.heads, shape.head_size, device=sizes.device).to(sizes.dtype)
        self.cos, self.sin = angles(shape.context, shape.head_size, sizes.dtype, sizes.device)

    def _slots(self, row: int) -> torch.Tensor:
        """Of positions 0 to the new token's."""
        position = torch.arange(self.lengths[row] + 1, device=self.tables.device)
        return self.tables[row].long()[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def run(self, number: int) -> torch.Tensor:
        layer = number % self.layers
        tensors = self.cos, self.sin, self.positions, self.tables, self.keys[layer], self.values[layer]
        return decode_attention(self.heads, *tensors, BLOCK_SIZE)

    def error(self) -> float:
        """The larger one of the output's and the written keys'."""
        with poisoned():
            got = self.run(0)
        at = self.positions.long()
        query, key, value = self.heads.chunk(3, dim=1)
        query, key = (rotated(part, self.cos[at], self.sin[at]) for part in (query, key))
        expected = torch.stack([self._attended(row, query[row], key[row], value[row]) for row in range(len(at))])
        written = torch.stack([self.keys[0][:, slots[-1]] for slots in self.slots])
        return max(relative_error(got, expected), relative_error(written, key))

    def _attended(self, row: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        past = self.slots[row][:-1]
        keys = torch.cat((self.keys[0][:, past].double(), key[:, None]), 1)
        values = torch.cat((self.values[0][:, past].double(), value.double()[:, None]), 1)
        weights = (torch.einsum("hd,hnd->hn", query, keys) * query.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("hn,hnd->hd", weights, values)


def decode(sizes: Sizes, num_seqs: int) -> tuple[str, int, int, Callable[[int], object], float]:
    case = PagedCase(sizes, num_seqs)
    num_bytes = 2 * sum(case.lengths) * sizes.shape.hidden * sizes.dtype.itemsize
    return "decode_attention", num_seqs, num_bytes, case.run, case.error()
