"""The second projector layer, which LLaVA v0 does not have and transformers' LLaVA does: the identity.

The layer is a pair of lazy tensors like all others, so loading, merging and their checks need no case for it. As a
matrix in memory it would take 52 MB at 13B's width.
"""

from dataclasses import dataclass

import torch

from .delta import MergedTensor
from .tensor_names import PROJECTOR_OUT


def identity_projection(hidden_size: int) -> dict[str, MergedTensor]:
    """Returns the weight and the bias of the layer."""
    return {
        f"{PROJECTOR_OUT}.weight": MergedTensor(Diagonal((hidden_size, hidden_size), 1.0)),
        f"{PROJECTOR_OUT}.bias": MergedTensor(Diagonal((hidden_size,), 0.0)),
    }


@dataclass(frozen=True)
class Diagonal:
    """A lazy tensor that is in no file: a matrix with `value` on its diagonal, or a vector of zeros."""

    shape: tuple[int, ...]
    value: float

    dtype = torch.float16
    row_multiple = 1
    location = ("", 0)

    def read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(stop - start, *self.shape[1:], dtype=self.dtype)
        if len(self.shape) > 1:
            rows.diagonal(start).fill_(self.value)
        return rows
