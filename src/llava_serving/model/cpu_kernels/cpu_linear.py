"""Linear layers that the kernels of linear.c compute."""

import ctypes
import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import linear

from ..packed_linear import PackedLinear
from .library import ROW_DTYPES, Pointer, load_kernels, pointer
from .packed_weight import GROUP, NumberFormat, PackedWeight

logger = logging.getLogger(__name__)


class _LinearLayer(ctypes.Structure):
    """`linear_layer` of linear.c."""

    _fields_ = (
        *((name, Pointer) for name in (
            "input", "output", "weight", "scale", "multiplier", "offset", "bias", "tiles", "row_scale", "input_sums",
        )),
        *((name, ctypes.c_int64) for name in ("rows", "in_features", "out_features", "lanes")),
        *((name, ctypes.c_int32) for name in ("format", "is_bfloat16", "threads")),
    )  # fmt: skip


class CpuLinear(PackedLinear):
    """A linear layer with a packed weight, or the part of one whose other parts are other layers with the same input.

    Without compiled kernels it unpacks the weight for every call, which is several times slower.
    """

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None, start: int, stop: int) -> None:
        """The layer computes the output features `start` to `stop` of `weight`. `bias` is of all of its features."""
        super().__init__()
        self.packed = weight
        self.rounds_inputs = weight.format is not NumberFormat.BFLOAT16
        self.in_features, self.out_features = weight.in_features, stop - start
        self._start, self._stop = start, stop
        self._whole_bias = bias
        self.bias = None if bias is None else bias[start:stop]

    @classmethod
    def empty_fused(cls, linears: Sequence[nn.Linear], number_format: NumberFormat) -> "list[CpuLinear]":
        """Returns uninitialised layers of the sizes of `linears`, which have the same input, as parts of one weight."""
        total = sum(linear.out_features for linear in linears)
        weight = PackedWeight(total, linears[0].in_features, number_format)
        bias = None if linears[0].bias is None else torch.zeros(total)
        layers, start = [], 0
        for part in linears:
            layers.append(cls(weight, bias, start, start + part.out_features))
            start += part.out_features
        return layers

    @classmethod
    def fuse(cls, linears: "Sequence[CpuLinear]") -> "CpuLinear":
        weight = linears[0].packed
        assert all(part.packed is weight for part in linears)
        assert sum(part.out_features for part in linears) == weight.out_features
        return cls(weight, linears[0]._whole_bias, 0, weight.out_features)

    @property
    def device(self) -> torch.device:
        return self.packed.lanes.device

    def fill(self, start: int, rows: torch.Tensor) -> None:
        self.packed.fill(self._start + start, rows)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Maps (..., in features) to (..., out features), in the dtype of `states`."""
        rows = states.reshape(-1, self.in_features)
        if rows.dtype not in ROW_DTYPES:
            return self.forward(states.float()).to(states.dtype)
        output = self._multiplied(rows) if load_kernels() else self._unpacked(rows)
        if output.shape[1] != self.out_features:
            output = output[:, self._start : self._stop]
        return output.view(*states.shape[:-1], self.out_features)

    def _multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        weight, kernels = self.packed, load_kernels()
        assert kernels is not None
        rows = rows.contiguous()
        output = rows.new_empty(len(rows), weight.out_features)
        tiles = torch.empty(len(rows) * weight.num_lanes, dtype=torch.int32)
        row_scale = torch.empty(len(rows))
        input_sums = torch.empty(len(rows) * (weight.padded_features // GROUP + 1), dtype=torch.int32)
        layer = _LinearLayer(
            pointer(rows), pointer(output), pointer(weight.lanes), pointer(weight.scale), pointer(weight.multiplier),
            pointer(weight.offset), pointer(self._whole_bias), pointer(tiles), pointer(row_scale),
            pointer(input_sums), len(rows), weight.in_features, weight.out_features, weight.num_lanes,
            weight.format.value, rows.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        kernels.llava_linear(ctypes.byref(layer))
        return output

    def _unpacked(self, rows: torch.Tensor) -> torch.Tensor:
        bias = None if self._whole_bias is None else self._whole_bias.to(rows.dtype)
        return linear(rows, self.packed.unpacked().to(rows.dtype), bias)
