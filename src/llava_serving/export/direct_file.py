"""A file written past the page cache.

Gigabytes that nobody will read soon are copied into the cache, flushed out of it, and have pushed out what was there.
Straight to the disk a merge of 5 GB took 10.4 s, through the cache 16.5 s.
"""

import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ALIGNMENT = 4096  # of offsets, lengths and memory, whatever the disk's own blocks
BUFFER_BYTES = 8 * 1024 * 1024


class DirectFile:
    """Takes bytes in order; one buffer fills while the other is on its way to the disk.

    File systems without direct access (tmpfs, mounted storage) are written in the ordinary way.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
        except OSError:
            self._file = os.open(path, flags, 0o666)
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(2)]
        self._filled = 0
        self._size = 0
        self._writer = ThreadPoolExecutor(1, "write")
        self._writing: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Raises OSError, perhaps of an earlier call: a full disk."""
        left = memoryview(data)
        self._size += len(left)
        while left:
            count = min(len(left), BUFFER_BYTES - self._filled)
            self._buffers[0][self._filled : self._filled + count] = left[:count]
            self._filled += count
            left = left[count:]
            if self._filled == BUFFER_BYTES:
                self._send()

    def close(self) -> None:
        """Everything written is on the disk afterwards."""
        try:
            self._filled = -(-self._filled // ALIGNMENT) * ALIGNMENT  # what is too much is cut off again
            self._send()
            self._settle()
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes without a promise. Does nothing the second time."""
        self._writer.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _send(self) -> None:
        self._settle()
        if self._filled:
            self._writing = self._writer.submit(self._write_out, self._buffers[0][: self._filled])
        self._buffers.reverse()
        self._filled = 0

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_out(self, left: memoryview) -> None:
        while left:
            left = left[os.write(self._file, left) :]
