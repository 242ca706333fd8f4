"""A simulation of torch's caching allocator for GPUs, which records what code allocates on the meta device.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with default settings:

- Sizes are rounded up to 512 bytes.
- Sizes up to 1 MiB come from segments of 2 MiB, and sizes below 10 MiB from segments of 20 MiB. Each larger size has a
  segment of its own, rounded up to 2 MiB.
- The smallest free block that fits is taken and split. Free neighbours are merged.
- An unused segment returns to the driver when the cache is emptied, or when a new segment does not fit otherwise.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20
ROUNDING, SMALL_LIMIT, SMALL_SEGMENT = 512, MIB, 2 * MIB
MEDIUM_LIMIT, MEDIUM_SEGMENT, LARGE_ROUNDING = 10 * MIB, 20 * MIB, 2 * MIB


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(eq=False)
class Block:
    size: int
    segment: list["Block"]
    is_small: bool
    used: bool = False


@dataclass
class SimulatedAllocator:
    """A GPU of `total` bytes, of which other processes use `others`."""

    total: int
    others: int = 0
    segments: list[list[Block]] = field(default_factory=list)
    peak: int = 0

    def free(self) -> int:
        return self.total - self.others - self.reserved()

    def reserved(self) -> int:
        return sum(block.size for segment in self.segments for block in segment)

    def peak_reserved(self) -> int:
        return self.peak

    def reset_peak(self) -> None:
        self.peak = self.reserved()

    def empty_cache(self) -> None:
        self.segments = [segment for segment in self.segments if any(block.used for block in segment)]

    def allocate(self, num_bytes: int) -> Block:
        size = max(ROUNDING, round_up(num_bytes, ROUNDING))
        is_small = size <= SMALL_LIMIT
        fitting = (
            block
            for segment in self.segments
            for block in segment
            if not block.used and block.is_small == is_small and block.size >= size
        )
        block = min(fitting, key=lambda block: block.size, default=None) or self._new_segment(size, is_small)
        self._split(block, size)
        block.used = True
        self.peak = max(self.peak, self.reserved())
        return block

    def release(self, block: Block) -> None:
        block.used = False
        segment = block.segment
        index = segment.index(block)
        for first in (index, index - 1):
            if 0 <= first < len(segment) - 1 and not (segment[first].used or segment[first + 1].used):
                segment[first].size += segment.pop(first + 1).size

    def _new_segment(self, size: int, is_small: bool) -> Block:
        segment_size = SMALL_SEGMENT if is_small else MEDIUM_SEGMENT
        if size >= MEDIUM_LIMIT:
            segment_size = round_up(size, LARGE_ROUNDING)
        if segment_size > self.free():
            self.empty_cache()
        if segment_size > self.free():
            raise torch.OutOfMemoryError(f"{segment_size} bytes requested, {self.free()} free")
        segment: list[Block] = []
        segment.append(Block(segment_size, segment, is_small))
        self.segments.append(segment)
        return segment[0]

    def _split(self, block: Block, size: int) -> None:
        remainder = block.size - size
        if remainder >= (ROUNDING if block.is_small else MIB + 1):
            block.size = size
            block.segment.insert(block.segment.index(block) + 1, Block(remainder, block.segment, block.is_small))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Allocates memory for each new storage of torch, and releases it when the storage is deleted."""
        with _AllocationRecorder(self):
            yield


class _AllocationRecorder(TorchDispatchMode):
    def __init__(self, allocator: SimulatedAllocator) -> None:
        super().__init__()
        self._allocator = allocator
        self._recorded: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {self._id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self._id(leaf) not in inputs | self._recorded:
                self._allocate(leaf)
        return result

    @staticmethod
    def _id(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _allocate(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        block, identity = self._allocator.allocate(storage.nbytes()), storage._cdata
        self._recorded.add(identity)

        def release() -> None:
            self._recorded.discard(identity)
            self._allocator.release(block)

        weakref.finalize(storage, release)
