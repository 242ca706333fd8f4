"""Tensors from disk in pieces, read ahead by threads while earlier pieces are worked on."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from .delta import MergedTensor
from .storage.stored_tensor import Tensor, row_bytes, rows_of

PIECE_BYTES = 8 * 1024 * 1024
READERS = 4
# Pieces under way at a time: what is read ahead, and the one that is worked on.
AHEAD = 8
TERMS = 2
# What `pieces` holds at most, whatever it reads: rows of LLaMA's width are far smaller than a piece.
BUFFER_BYTES = AHEAD * TERMS * PIECE_BYTES


@dataclass(frozen=True)
class RowChunk:
    """Rows `start` to `stop` of a sum's terms, as stored. Valid until the next piece is asked for."""

    name: str
    sum: MergedTensor
    start: int
    stop: int
    first: torch.Tensor
    second: torch.Tensor | None

    def rows(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Of the sum, computed on `device`."""
        first = self.first.to(device)
        return self.sum.rows(first, None if self.second is None else self.second.to(device), dtype)


def read_chunks(merged_tensors: Iterable[tuple[str, MergedTensor]], pinned: bool = False) -> Iterator[RowChunk]:
    """The merged_tensors' rows in order. `pinned` memory is what a GPU copies from at full speed.

    Memory: BUFFER_BYTES, whatever the sizes of the tensors. Raises StartupError where a file cannot be read.
    """
    buffers: SimpleQueue[torch.Tensor] = SimpleQueue()
    for _ in range(TERMS * AHEAD):
        buffers.put(torch.empty(0, dtype=torch.uint8))
    waiting: deque[tuple[Future[RowChunk], list[torch.Tensor]]] = deque()
    with ThreadPoolExecutor(READERS, "read") as readers:
        try:
            for name, total in merged_tensors:
                for start, stop in _ranges(total):
                    if len(waiting) == AHEAD:
                        yield from _next(waiting, buffers)
                    held = [_sized(buffers.get(), size, pinned) for size in _sizes(total, stop - start)]
                    waiting.append((readers.submit(_read, name, total, start, stop, held), held))
            while waiting:
                yield from _next(waiting, buffers)
        finally:
            for future, _ in waiting:
                future.cancel()


def _next(
    waiting: deque[tuple[Future[RowChunk], list[torch.Tensor]]], buffers: "SimpleQueue[torch.Tensor]"
) -> Iterator[RowChunk]:
    future, held = waiting.popleft()
    yield future.result()
    for buffer in held:
        buffers.put(buffer)


def _read(name: str, total: MergedTensor, start: int, stop: int, buffers: list[torch.Tensor]) -> RowChunk:
    first = total.first.read(start, stop, buffers[0])
    second = None
    if total.second is not None and start < rows_of(total.second):
        second = total.second.read(start, min(stop, rows_of(total.second)), buffers[1])
    return RowChunk(name, total, start, stop, first, second)


def _ranges(total: MergedTensor) -> Iterator[tuple[int, int]]:
    rows = rows_of(total.first)
    step = max(term.step for term in _terms(total))
    size = max(row_bytes(term) for term in _terms(total)) or 1
    count = max(step, PIECE_BYTES // size // step * step)
    return ((start, min(start + count, rows)) for start in range(0, rows, count))


def _terms(total: MergedTensor) -> list[Tensor]:
    return [total.first] if total.second is None else [total.first, total.second]


def _sizes(total: MergedTensor, rows: int) -> list[int]:
    return [rows * row_bytes(term) for term in _terms(total)]


def _sized(buffer: torch.Tensor, size: int, pinned: bool) -> torch.Tensor:
    if buffer.numel() < size:
        return torch.empty(max(size, PIECE_BYTES), dtype=torch.uint8, pin_memory=pinned)
    return buffer
