"""Tensors that are not in memory: their rows are read a few at a time.

A merge or a load holds only the rows that it works on, whatever the format, the sharding and the size of the model.
"""

import math
from typing import Protocol

import torch


class LazyTensor(Protocol):
    """A tensor whose rows are read on request. A tensor without dimensions has one row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in the file."""
        ...

    @property
    def row_multiple(self) -> int:
        """Reads start and stop at a multiple of this number of rows, or at the end."""
        ...

    @property
    def location(self) -> tuple[str, int]:
        """The file and the byte offset of the first row. Reading in this order is sequential."""
        ...

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        """Returns the rows from `start` to `stop` in the dtype of the file.

        The result may be a view of `buffer`, which holds at least as many bytes as the rows have.
        Raises StartupError if the file cannot be read.
        """
        ...


def num_rows(tensor: LazyTensor) -> int:
    return tensor.shape[0] if tensor.shape else 1


def row_bytes(tensor: LazyTensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.dtype.itemsize


def num_bytes(tensor: LazyTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_rows(tensor: LazyTensor, start: int, stop: int) -> torch.Tensor:
    """Returns rows in memory of their own."""
    return tensor.read(start, stop, torch.empty((stop - start) * row_bytes(tensor), dtype=torch.uint8))


def read_whole(tensor: LazyTensor) -> torch.Tensor:
    return read_rows(tensor, 0, num_rows(tensor)).view(tensor.shape)
