"""Tensors that lie in files, read a few rows at a time.

A checkpoint of tens of gigabytes is only ever seen through `read`: whoever merges or loads it holds the rows it is
working on and no more, whatever the format, the sharding and the size of the model.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from ...errors import StartupError
from ...model_files import hint


class Tensor(Protocol):
    """A tensor that is not in memory. One without dimensions has one row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        ...

    @property
    def step(self) -> int:
        """Rows can only be read from and to multiples of it, the end apart."""
        ...

    @property
    def place(self) -> tuple[str, int]:
        """Where reading begins, to read neighbours one after the other."""
        ...

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        """Rows `start` to `stop`, of the stored dtype. They may lie in `buffer` (bytes), which must have their size.

        Raises StartupError where the file cannot be read.
        """
        ...


def rows_of(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.shape else 1


def row_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.dtype.itemsize


def num_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_whole(tensor: Tensor) -> torch.Tensor:
    rows = tensor.read(0, rows_of(tensor), torch.empty(num_bytes(tensor), dtype=torch.uint8))
    return rows.view(tensor.shape)


@dataclass(frozen=True)
class StoredTensor:
    """A row-major tensor from byte `offset` of a file on."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    step = 1

    @property
    def place(self) -> tuple[str, int]:
        return str(self.path), self.offset

    @cached_property
    def _row_bytes(self) -> int:
        return row_bytes(self)

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        size = (stop - start) * self._row_bytes
        _read_into(self.path, self.offset + start * self._row_bytes, buffer[:size])
        return buffer[:size].view(self.dtype).view(stop - start, *self.shape[1:])


def _read_into(path: Path, offset: int, buffer: torch.Tensor) -> None:
    wanted = buffer.numpy().data
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while wanted:
                count = os.preadv(file, [wanted], offset)
                if not count:
                    raise StartupError(f"{path} ends at byte {offset:,}, before its tensors do; {hint(path)}")
                wanted, offset = wanted[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class JoinedTensor:
    """OpenedParts along dimension 0 or 1, as model-parallel training leaves a matrix."""

    parts: Sequence[Tensor]
    dim: int

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(shape)

    @property
    def step(self) -> int:
        return self.parts[0].step

    @property
    def place(self) -> tuple[str, int]:
        return self.parts[0].place

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        pieces, used, first = [], 0, 0
        for part in self.parts:
            rows = rows_of(part)
            inside = (start, stop) if self.dim else (max(start - first, 0), min(stop - first, rows))
            first += rows
            if inside[0] < inside[1]:
                pieces.append(part.read(*inside, buffer[used:]))
                used += (inside[1] - inside[0]) * row_bytes(part)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.dim)


@dataclass(frozen=True)
class RotaryTensor:
    """A query or key projection of Meta's release, its rows in transformers' order.

    Meta rotates neighbouring pairs of a head's rows, transformers its first half with its second (transformers
    convert_llama_weights_to_hf.py, `permute`).
    """

    stored: Tensor
    head_dim: int

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def step(self) -> int:
        return self.head_dim

    @property
    def place(self) -> tuple[str, int]:
        return self.stored.place

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        rows = self.stored.read(start, stop, buffer)
        pairs = rows.view(-1, self.head_dim // 2, 2, rows.shape[1])  # (heads, pairs, 2, columns)
        return pairs.transpose(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class Diagonal:
    """A square matrix with `value` on its diagonal, or a vector of zeros: what no file needs to hold."""

    shape: tuple[int, ...]
    value: float

    dtype = torch.float16
    step = 1
    place = ("", 0)

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(stop - start, *self.shape[1:], dtype=self.dtype)
        if len(self.shape) > 1:
            rows.diagonal(start).fill_(self.value)
        return rows
