"""The matrices of Meta's release, whose parts lie in one file for each model-parallel rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .lazy_tensor import LazyTensor, num_rows, row_bytes


@dataclass(frozen=True)
class JoinedTensor:
    """The concatenation of `parts` along dimension 0 or 1."""

    parts: Sequence[LazyTensor]
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
    def row_multiple(self) -> int:
        return self.parts[0].row_multiple

    @property
    def location(self) -> tuple[str, int]:
        return self.parts[0].location

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        pieces, used, first_row = [], 0, 0
        for part in self.parts:
            rows = num_rows(part)
            part_start, part_stop = (
                (start, stop) if self.dim else (max(start - first_row, 0), min(stop - first_row, rows))
            )
            first_row += rows
            if part_start < part_stop:
                pieces.append(part.read(part_start, part_stop, buffer[used:]))
                used += (part_stop - part_start) * row_bytes(part)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.dim)


@dataclass(frozen=True)
class RotaryTensor:
    """A query or key projection of Meta's release, with its rows in transformers' order.

    Meta rotates neighbouring pairs of a head's rows. transformers rotates the first half of the rows with the second
    half (transformers convert_llama_weights_to_hf.py, `permute`).
    """

    stored: LazyTensor
    head_dim: int

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def row_multiple(self) -> int:
        return self.head_dim

    @property
    def location(self) -> tuple[str, int]:
        return self.stored.location

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        rows = self.stored.read(start, stop, buffer)
        pairs = rows.view(-1, self.head_dim // 2, 2, rows.shape[1])  # (heads, pairs, 2, columns)
        return pairs.transpose(1, 2).reshape(rows.shape)
