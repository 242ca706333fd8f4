"""A tensor in a file, read with `pread` into memory that the caller reuses.

The libraries map files. The sum of two files of 252 MB then peaks at 652 MB of resident memory, and at 172 MB here, in
the same time (0.7 s). With a mapped file, a failing disk ends the process with SIGBUS, without a message.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ...errors import StartupError
from ...model_files import damage_hint
from .lazy_tensor import row_bytes


@dataclass(frozen=True)
class StoredTensor:
    """A row-major tensor that begins at byte `offset` of a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    row_multiple = 1

    @property
    def location(self) -> tuple[str, int]:
        return str(self.path), self.offset

    @cached_property
    def _row_bytes(self) -> int:
        return row_bytes(self)

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        size = (stop - start) * self._row_bytes
        _read_into(self.path, self.offset + start * self._row_bytes, buffer[:size])
        return buffer[:size].view(self.dtype).view(stop - start, *self.shape[1:])


def _read_into(path: Path, offset: int, buffer: torch.Tensor) -> None:
    remaining = buffer.numpy().data
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while remaining:
                count = os.preadv(file, [remaining], offset)
                if not count:
                    raise StartupError(f"{path} ends at byte {offset:,}, before its tensors do; {damage_hint(path)}")
                remaining, offset = remaining[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error}") from error
