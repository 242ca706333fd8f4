"""Tensors from disk in chunks of rows: threads read ahead while the caller works on earlier chunks."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from .delta import MergedTensor
from .storage.lazy_tensor import num_rows, row_bytes

CHUNK_BYTES = 8 * 1024 * 1024
READER_THREADS = 4
# Chunks in memory at a time: those that are read ahead, and the one that the caller works on.
MAX_CHUNKS = 8
BUFFERS_PER_CHUNK = 2  # a tensor's own rows and its base's
# The most that `read_chunks` holds, whatever it reads: a row of LLaMA's width is far smaller than a chunk.
BUFFER_BYTES = MAX_CHUNKS * BUFFERS_PER_CHUNK * CHUNK_BYTES


@dataclass(frozen=True)
class RowChunk:
    """Rows `start` to `stop` of both terms of a merged tensor. Valid until the caller takes the next chunk."""

    name: str
    tensor: MergedTensor
    start: int
    stop: int
    stored_rows: torch.Tensor
    base_rows: torch.Tensor | None

    @property
    def is_last(self) -> bool:
        """Whether the tensor has no rows after these."""
        return self.stop == num_rows(self.tensor.stored)

    def rows(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns the merged rows, computed on `device`."""
        base_rows = None if self.base_rows is None else self.base_rows.to(device)
        return self.tensor.merge_rows(self.stored_rows.to(device), base_rows, dtype)


_Pending = tuple[Future[RowChunk], list[torch.Tensor]]  # a chunk and the buffers that it is read into
_Buffers = SimpleQueue[torch.Tensor]


def read_chunks(tensors: Iterable[tuple[str, MergedTensor]], pinned: bool = False) -> Iterator[RowChunk]:
    """Yields all rows in order. A GPU copies from `pinned` memory at full speed.

    Holds BUFFER_BYTES, whatever the sizes of the tensors. Raises StartupError if a file cannot be read.
    """
    buffers: _Buffers = SimpleQueue()
    for _ in range(BUFFERS_PER_CHUNK * MAX_CHUNKS):
        buffers.put(torch.empty(0, dtype=torch.uint8))
    pending: deque[_Pending] = deque()
    with ThreadPoolExecutor(READER_THREADS, "read") as readers:
        try:
            for name, tensor in tensors:
                for start, stop in _chunk_ranges(tensor):
                    if len(pending) == MAX_CHUNKS:
                        yield from _take_next(pending, buffers)
                    sizes = [(stop - start) * row_bytes(term) for term in tensor.terms]
                    chunk_buffers = [_with_room(buffers.get(), size, pinned) for size in sizes]
                    chunk = readers.submit(_read_chunk, name, tensor, start, stop, chunk_buffers)
                    pending.append((chunk, chunk_buffers))
            while pending:
                yield from _take_next(pending, buffers)
        finally:
            for future, _ in pending:
                future.cancel()


def next_tensor_chunks(chunks: Iterator[RowChunk]) -> Iterator[RowChunk]:
    """Yields the chunks of one tensor, which are the next of `chunks`. Takes no chunk of the tensor after it."""
    for chunk in chunks:
        yield chunk
        if chunk.is_last:
            return


def _take_next(pending: deque[_Pending], buffers: _Buffers) -> Iterator[RowChunk]:
    chunk, chunk_buffers = pending.popleft()
    yield chunk.result()
    for buffer in chunk_buffers:
        buffers.put(buffer)


def _read_chunk(name: str, tensor: MergedTensor, start: int, stop: int, buffers: list[torch.Tensor]) -> RowChunk:
    return RowChunk(name, tensor, start, stop, *tensor.read(start, stop, buffers))


def _chunk_ranges(tensor: MergedTensor) -> Iterator[tuple[int, int]]:
    rows = num_rows(tensor.stored)
    multiple = max(term.row_multiple for term in tensor.terms)
    size = max(row_bytes(term) for term in tensor.terms) or 1
    count = max(multiple, CHUNK_BYTES // size // multiple * multiple)
    return ((start, min(start + count, rows)) for start in range(0, rows, count))


def _with_room(buffer: torch.Tensor, size: int, pinned: bool) -> torch.Tensor:
    """Returns the buffer, or a new one if it has fewer than `size` bytes."""
    if buffer.numel() < size:
        return torch.empty(max(size, CHUNK_BYTES), dtype=torch.uint8, pin_memory=pinned)
    return buffer
