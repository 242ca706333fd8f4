"""Decode attention over a paged cache whose unused blocks all hold NaN."""

from collections.abc import Callable

import torch

from llava_serving.model.kernels.decode_attention import decode_attention
from llava_serving.model.kv_cache import BLOCK_SIZE, LayerCache
from llava_serving.model.kv_cache_int8 import dequantize, quantize

from .poison import poisoned
from .reference import apply_rotary, relative_error, rotary_tables
from .sizes import Sizes

FREE_BLOCKS = 8


class PagedCase:
    """Sequences in shuffled blocks, in enough layers that the device's cache holds no layer until its next turn."""

    def __init__(self, sizes: Sizes, num_seqs: int, int8: bool) -> None:
        shape = sizes.shape
        self.lengths = sizes.lengths(num_seqs)
        block_counts = [length // BLOCK_SIZE + 1 for length in self.lengths]
        null_block = sum(block_counts) + FREE_BLOCKS
        shuffled = torch.randperm(null_block, device=sizes.device)
        max_blocks = -(-shape.context // BLOCK_SIZE)
        self.block_tables = torch.full((num_seqs, max_blocks), null_block, device=sizes.device).int()
        for row, blocks in enumerate(shuffled[: sum(block_counts)].split(block_counts)):
            self.block_tables[row, : len(blocks)] = blocks.int()
        self.positions = torch.tensor(self.lengths, device=sizes.device).int()
        self.slots = [self._slots(row) for row in range(num_seqs)]
        layer_bytes = 2 * shape.hidden * (null_block + 1) * BLOCK_SIZE * sizes.dtype.itemsize
        self.layers = max(2, -(-sizes.rotated_bytes // layer_bytes))
        cache_shape = (2, self.layers, shape.heads, (null_block + 1) * BLOCK_SIZE, shape.head_size)
        keys, values = torch.full(cache_shape, torch.nan, dtype=sizes.dtype, device=sizes.device)
        written = torch.cat([slots[:-1] for slots in self.slots])
        for cached in (*keys, *values):
            states = torch.randn(shape.heads, len(written), shape.head_size, device=sizes.device)
            cached[:, written] = states.to(cached)
        self.caches = [LayerCache(*layer) for layer in zip(keys, values, strict=True)]
        if int8:  # the scales of unused slots are NaN
            self.caches = [cache.quantized() for cache in self.caches]
        self.heads = torch.randn(num_seqs, 3 * shape.heads, shape.head_size, device=sizes.device).to(sizes.dtype)
        self.cos, self.sin = rotary_tables(shape.context, shape.head_size, sizes.dtype, sizes.device)

    def _slots(self, row: int) -> torch.Tensor:
        """Returns the slots of all positions of a sequence, its new token's included."""
        position = torch.arange(self.lengths[row] + 1, device=self.block_tables.device)
        return self.block_tables[row].long()[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def run(self, call: int) -> torch.Tensor:
        tensors = self.cos, self.sin, self.positions, self.block_tables, self.caches[call % self.layers]
        return decode_attention(self.heads, *tensors, BLOCK_SIZE)

    def error(self) -> float:
        """Returns the larger error of the output and of the written keys. In int8 a written key is a rounded one."""
        with poisoned():
            actual = self.run(0)
        positions = self.positions.long()
        query, key, value = self.heads.chunk(3, dim=1)
        query, key = (apply_rotary(states, self.cos[positions], self.sin[positions]) for states in (query, key))
        if self.caches[0].key_scales is not None:
            key, value = (dequantize(*quantize(states), torch.float64) for states in (key, value))
        rows = range(len(positions))
        expected = torch.stack([self._attention(row, query[row], key[row], value[row]) for row in rows])
        written = self.caches[0].gather(torch.stack([slots[-1] for slots in self.slots]), torch.float64)[0]
        return max(relative_error(actual, expected), relative_error(written, key))

    def _attention(self, row: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        cached = self.caches[0].gather(self.slots[row][:-1], torch.float64)
        keys, values = (
            torch.cat((states.transpose(0, 1), own.double()[:, None]), 1)
            for states, own in zip(cached, (key, value), strict=True)
        )
        weights = (torch.einsum("hd,hnd->hn", query, keys) * query.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("hn,hnd->hd", weights, values)


def decode(sizes: Sizes, num_seqs: int) -> tuple[str, int, int, Callable[[int], object], float]:
    case = PagedCase(sizes, num_seqs, int8=False)
    num_bytes = 2 * sum(case.lengths) * sizes.shape.hidden * sizes.dtype.itemsize
    return "decode_attention", num_seqs, num_bytes, case.run, case.error()


def decode_int8(sizes: Sizes, num_seqs: int) -> tuple[str, int, int, Callable[[int], object], float]:
    """The same over keys and values in 8 bits, with a scale of four bytes for each token and head."""
    case = PagedCase(sizes, num_seqs, int8=True)
    num_bytes = 2 * sum(case.lengths) * sizes.shape.heads * (sizes.shape.head_size + 4)
    return "decode_attention, int8 KV", num_seqs, num_bytes, case.run, case.error()
