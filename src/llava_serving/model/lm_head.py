"""From the last hidden states to logits."""

from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from .decoder import Linear, Norm

# cuBLAS reads a weight whose rows are no multiple of this several times slower: at 64 rows the 32,003 of LLaVA's take
# 437 us on an H100 where 32,008 take a quarter.
ROWS_MULTIPLE = 8


class Project(Protocol):
    """How a device norms hidden states and maps them."""

    def __call__(self, hidden: torch.Tensor, norm: Norm, linear_map: Linear, /) -> torch.Tensor: ...


def torch_project(hidden: torch.Tensor, norm: Norm, linear: Linear) -> torch.Tensor:
    """By torch's operators, on any device."""
    return linear(norm(hidden))


class LMHead:
    """The final norm and `lm_head`, whose weight is given whole groups of rows on a GPU."""

    def __init__(self, norm: Any, lm_head: Any, project: Project) -> None:
        self._vocab_size: int = lm_head.weight.shape[0]
        self._norm = Norm(norm)
        self._linear = Linear([lm_head])
        if lm_head.weight.device.type == "cuda":
            self._linear.weight = _whole_rows(lm_head)
        self._project = project
        self._device = lm_head.weight.device

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden size) before the final norm, to logits (rows, vocabulary) on the head's device."""
        return self._project(hidden.to(self._device), self._norm, self._linear)[:, : self._vocab_size]


def _whole_rows(lm_head: Any) -> torch.Tensor:
    """The weight with rows of zeros up to ROWS_MULTIPLE; the module's own becomes a view of it."""
    weight: torch.Tensor = lm_head.weight.detach()
    missing = -len(weight) % ROWS_MULTIPLE
    if not missing:
        return weight
    whole_bytes = (len(weight) + missing) * weight.shape[1] * weight.element_size()
    if weight.untyped_storage().nbytes() == whole_bytes:  # done by an earlier head of the model
        return weight.as_strided((len(weight) + missing, weight.shape[1]), weight.stride())
    padded = pad(weight, (0, 0, 0, missing))
    lm_head.weight.data = padded[: len(weight)]
    return padded
