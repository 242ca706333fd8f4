"""Linear layers with 8-bit weights for a GPU: one scale per output feature, as in a CPU's `int8`.

A weight is rounded to an integer from -127 to 127, times the scale of its output feature. Few rows of input, as in a
decode step, keep the model's dtype: reading the weights takes the time, and rounded inputs would save none. More rows
are rounded to 8 bits as well, each by its own largest value, and tensor cores multiply integers.
"""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear

from .fused_weights import concatenate
from .packed_linear import PackedLinear

logger = logging.getLogger(__name__)
# The most rows that keep the model's dtype: those of a decode step with the most sequences that run by default.
MAX_EXACT_ROWS = 64
LARGEST = 127
# torch._int_mm refuses other sizes on a GPU, and fewer than 17 rows (aten/src/ATen/native/cuda/Blas.cpp).
INTEGER_PRODUCT_MULTIPLE = 8


class Int8Linear(PackedLinear):
    """A linear layer whose `weight` (out features, in features) is int8, and whose `scale` (out features,) float32."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        self.bias: torch.Tensor | None
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        aligned = not any(size % INTEGER_PRODUCT_MULTIPLE for size in weight.shape)
        self.rounds_inputs = aligned and multiplies_integers(weight.device)

    @classmethod
    def empty_fused(cls, linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> "list[Int8Linear]":
        """Returns uninitialised layers of the sizes of `linears`, which have the same input, in adjacent memory."""
        rows = [linear.out_features for linear in linears]
        weight = torch.empty(sum(rows), linears[0].in_features, dtype=torch.int8, device=device)
        scale = torch.empty(sum(rows), dtype=torch.float32, device=device)
        weights, scales = (torch.split_with_sizes(memory, rows) for memory in (weight, scale))
        biases: Sequence[torch.Tensor | None] = [None] * len(rows)
        if linears[0].bias is not None:
            biases = torch.split_with_sizes(torch.empty(sum(rows), dtype=dtype, device=device), rows)
        return [cls(*parts) for parts in zip(weights, scales, biases, strict=True)]

    @classmethod
    def fuse(cls, linears: "Sequence[Int8Linear]") -> "Int8Linear":
        biases = [linear.bias for linear in linears if linear.bias is not None]
        return cls(
            concatenate([linear.weight for linear in linears]),
            concatenate([linear.scale for linear in linears]),
            concatenate(biases) if biases else None,
        )

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def fill(self, start: int, rows: torch.Tensor) -> None:
        stop = start + len(rows)
        self.weight[start:stop], self.scale[start:stop] = quantize_rows(rows)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Maps (..., in features) to (..., out features), in the dtype of `states`."""
        rows = states.reshape(-1, self.in_features)
        if len(rows) > MAX_EXACT_ROWS and self.rounds_inputs:
            output = self._multiplied_as_integers(rows)
        else:
            output = linear(rows, self._unpacked(rows.dtype), self.bias)
        return output.view(*states.shape[:-1], self.out_features)

    def _multiplied_as_integers(self, rows: torch.Tensor) -> torch.Tensor:
        values, row_scale = quantize_rows(rows)
        output = torch._int_mm(values, self.weight.t()).float().mul_(row_scale[:, None]).mul_(self.scale)
        if self.bias is not None:
            output += self.bias
        return output.to(rows.dtype)

    def _unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight.to(dtype).mul_(self.scale[:, None])


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds (rows, size) to int8 and a float32 scale for each row, which makes the largest absolute value 127."""
    rows = rows.float()
    scale = rows.abs().amax(1) / LARGEST
    return (rows / scale[:, None].clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8), scale


def packed_bytes(out_features: int, in_features: int) -> int:
    """Returns the bytes of packed weights and their scales."""
    return out_features * (in_features + torch.float32.itemsize)


@cache
def multiplies_integers(device: torch.device) -> bool:
    """Returns whether torch multiplies int8 matrices on the device. It tests a GPU, and logs what it found."""
    if device.type != "cuda":
        return True
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-LARGEST, LARGEST + 1, (rows, 256), generator=random) for rows in (65, 72))
    try:
        result = torch._int_mm(x.to(device, torch.int8), weight.to(device, torch.int8).t()).cpu().long()
    except Exception as failure:  # a card or a version without this product: unpacked weights still work
        reason = f"torch._int_mm fails with {failure!r}"
    else:
        if torch.equal(result, x @ weight.t()):
            logger.info("int8: steps of more than %d rows multiply integers on tensor cores", MAX_EXACT_ROWS)
            return True
        reason = "torch._int_mm gives wrong results"
    logger.warning("int8: steps of more than %d rows unpack the weights first, slower: %s", MAX_EXACT_ROWS, reason)
    return False
