"""Linear layers with 4-bit weights in NF4, computed by bitsandbytes' kernels.

NF4 has 16 values that cut a normal distribution into equal parts. A float32 scales each block of 64 weights, so that a
weight takes 4.5 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3, without its double quantization).
Importing bitsandbytes takes a second, so only the functions that use it import it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from ..errors import StartupError
from .fused_weights import concatenate
from .packed_linear import PackedLinear

QUANT_TYPE, WEIGHTS_PER_BLOCK = "nf4", 64


class NF4Linear(PackedLinear):
    """A linear layer whose weight (out features, in features) is packed, two weights per byte in row-major order.

    `packed` is (weights / 2, 1), uint8; `scales` is (weights / 64,), float32.
    """

    def __init__(
        self, out_features: int, in_features: int, packed: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.packed: torch.Tensor
        self.scales: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def empty(cls, linear: nn.Linear, device: torch.device, dtype: torch.dtype = torch.float32) -> "NF4Linear":
        """Returns an uninitialised layer of the size of `linear`. Raises StartupError if its weights fill no whole
        number of blocks."""
        return cls.empty_fused([linear], device, dtype)[0]

    @classmethod
    def empty_fused(cls, linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> "list[NF4Linear]":
        """Returns uninitialised layers of the sizes of `linears`, which have the same input, in adjacent memory.

        Raises StartupError if the weights of one fill no whole number of blocks.
        """
        num_blocks = sum(map(_num_quantization_blocks, linears))
        fused = cls(
            sum(linear.out_features for linear in linears),
            linears[0].in_features,
            torch.empty(num_blocks * WEIGHTS_PER_BLOCK // 2, 1, dtype=torch.uint8, device=device),
            torch.empty(num_blocks, dtype=torch.float32, device=device),
            _empty_bias(linears, device, dtype),
        )
        rows = [linear.out_features for linear in linears]
        return [
            cls(linear.out_features, fused.in_features, *views)
            for linear, views in zip(linears, fused._split(rows), strict=True)
        ]

    @classmethod
    def fuse(cls, linears: "Sequence[NF4Linear]") -> "NF4Linear":
        """Returns one layer that computes all of `linears`, which have the same input, and makes them views of it."""
        biases = [linear.bias for linear in linears if linear.bias is not None]
        fused = cls(
            sum(linear.out_features for linear in linears),
            linears[0].in_features,
            concatenate([linear.packed for linear in linears]),
            concatenate([linear.scales for linear in linears]),
            concatenate(biases) if biases else None,
        )
        rows = [linear.out_features for linear in linears]
        for linear, (packed, scales, bias) in zip(linears, fused._split(rows), strict=True):
            linear.packed, linear.scales, linear.bias = packed, scales, bias
        return fused

    def _split(self, row_counts: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Yields views of `packed`, `scales` and `bias` for consecutive rows of the weight, `row_counts` at a time."""
        start = 0
        for count in row_counts:
            bias = None if self.bias is None else self.bias[start : start + count]
            yield *self._rows(start, start + count), bias
            start += count

    def fill(self, start: int, rows: torch.Tensor) -> None:
        """Quantizes `rows` (rows, in features) into the weight from row `start` on.

        Raises StartupError if they do not begin and end with a block. They do for every width that is a multiple of 64.
        """
        stop = start + len(rows)
        if start * self.in_features % WEIGHTS_PER_BLOCK or stop * self.in_features % WEIGHTS_PER_BLOCK:
            raise StartupError(
                f"rows of {self.in_features} weights cannot be packed a few at a time in blocks of "
                f"{WEIGHTS_PER_BLOCK}: set LLAVA_QUANTIZATION=none"
            )
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(rows.contiguous(), blocksize=WEIGHTS_PER_BLOCK, quant_type=QUANT_TYPE)
        for memory, values in zip(self._rows(start, stop), (packed, state.absmax), strict=True):
            memory.copy_(values)

    def _rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, last = start * self.in_features, stop * self.in_features
        packed = self.packed[first // 2 : last // 2]
        return packed, self.scales[first // WEIGHTS_PER_BLOCK : last // WEIGHTS_PER_BLOCK]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Maps (..., in features) to (..., out features)."""
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import QuantState

        if self.in_features % WEIGHTS_PER_BLOCK:
            return functional.linear(states, self._unpacked(states.dtype), self.bias)
        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(self.scales, shape, blocksize=WEIGHTS_PER_BLOCK, quant_type=QUANT_TYPE)
        output: torch.Tensor = matmul_4bit(states, self.packed.t(), state, bias=self.bias)
        return output

    def _unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the weight (out features, in features), unpacked as a list of blocks.

        bitsandbytes gives weights a wrong scale on a CPU if blocks cross the ends of the rows that it is told.
        """
        from bitsandbytes.functional import QuantState, dequantize_4bit

        shape = torch.Size((len(self.scales), WEIGHTS_PER_BLOCK))
        state = QuantState(self.scales, shape, blocksize=WEIGHTS_PER_BLOCK, quant_type=QUANT_TYPE, dtype=dtype)
        blocks: torch.Tensor = dequantize_4bit(self.packed, state)
        return blocks.view(self.out_features, self.in_features)

    @property
    def device(self) -> torch.device:
        return self.packed.device


def packed_bytes(num_weights: int) -> int:
    """Returns the bytes of packed weights and their scales."""
    return num_weights // 2 + num_weights // WEIGHTS_PER_BLOCK * torch.float32.itemsize


def _num_quantization_blocks(linear: nn.Linear) -> int:
    """Returns how many blocks the weight fills. Raises StartupError if the last one is not full."""
    blocks, rest = divmod(linear.out_features * linear.in_features, WEIGHTS_PER_BLOCK)
    if rest:
        size = f"{linear.out_features} x {linear.in_features}"
        raise StartupError(
            f"a weight of {size} cannot be packed in blocks of {WEIGHTS_PER_BLOCK}: set LLAVA_QUANTIZATION=none"
        )
    return blocks


def _empty_bias(linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    if linears[0].bias is None:
        return None
    return torch.empty(sum(linear.out_features for linear in linears), dtype=dtype, device=device)
