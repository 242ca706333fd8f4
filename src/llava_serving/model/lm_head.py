"""The final norm and the projection of hidden states to logits."""

from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from .decoder import Linear, RMSNorm
from .packed_linear import linear_device

# cuBLAS reads a weight several times slower if its number of rows is no multiple of this: at 64 rows of input, LLaVA's
# 32,003 rows take 437 us on an H100, and 32,008 take a quarter of that.
VOCAB_PADDING = 8


class ComputeLogits(Protocol):
    """Norms hidden states and projects them with a device's kernels."""

    def __call__(self, hidden: torch.Tensor, norm: RMSNorm, projection: Linear, /) -> torch.Tensor: ...


def torch_logits(hidden: torch.Tensor, norm: RMSNorm, projection: Linear) -> torch.Tensor:
    """The `ComputeLogits` by torch's operators, on any device."""
    return projection(norm(hidden))


class LMHead:
    """The final norm and `lm_head`. On a GPU the weight is padded to a multiple of VOCAB_PADDING rows."""

    def __init__(self, norm: Any, lm_head: Any, compute_logits: ComputeLogits) -> None:
        self._vocab_size: int = lm_head.out_features
        self._device = linear_device(lm_head)
        self._norm = RMSNorm(norm)
        self._projection = Linear([lm_head])
        if self._device.type == "cuda":
            self._projection.weight = _padded_weight(lm_head)
        self._compute_logits = compute_logits

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps (rows, hidden size) before the final norm to logits (rows, vocabulary) on the head's device."""
        logits = self._compute_logits(hidden.to(self._device), self._norm, self._projection)
        return logits[:, : self._vocab_size]


def _padded_weight(lm_head: Any) -> torch.Tensor:
    """Returns the weight padded with rows of zeros, and makes the module's own weight a view of it."""
    weight: torch.Tensor = lm_head.weight.detach()
    missing = -len(weight) % VOCAB_PADDING
    if not missing:
        return weight
    padded_bytes = (len(weight) + missing) * weight.shape[1] * weight.element_size()
    if weight.untyped_storage().nbytes() == padded_bytes:  # an earlier LMHead of the same model has padded it
        return weight.as_strided((len(weight) + missing, weight.shape[1]), weight.stride())
    padded = pad(weight, (0, 0, 0, missing))
    lm_head.weight.data = padded[: len(weight)]
    return padded
