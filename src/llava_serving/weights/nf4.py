"""Linear maps whose weights are 4 bits each: NF4, by bitsandbytes' kernels.

16 values that cut a normal distribution into equal parts, scaled for each 64 weights by a float32: 4.5 bits a weight
(QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3, without its double quantization). bitsandbytes, a second of
every start, is imported where it is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..errors import StartupError

KIND, BLOCK = "nf4", 64


class PackedLinear(nn.Module):
    """A weight (out features, in features), two to a byte in row-major order: `packed` (weights / 2, 1), uint8, and
    `scales` (weights / 64,), float32."""

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
    def empty(cls, linear: nn.Linear, device: torch.device) -> "PackedLinear":
        """For the weight of `linear`, to be filled. Raises StartupError for a size that has no whole blocks."""
        weights = linear.out_features * linear.in_features
        if weights % BLOCK:
            size = f"{linear.out_features} x {linear.in_features}"
            raise StartupError(f"a weight of {size} cannot be packed in blocks of {BLOCK}: LLAVA_QUANTIZATION=none")
        packed = torch.empty(weights // 2, 1, dtype=torch.uint8, device=device)
        scales = torch.empty(weights // BLOCK, dtype=torch.float32, device=device)
        return cls(linear.out_features, linear.in_features, packed, scales, None)

    @classmethod
    def joined(cls, parts: "Sequence[PackedLinear]") -> "PackedLinear":
        """Maps of one input as one; the parts become views of it, so that the weights are not there twice."""
        biases = [part.bias for part in parts if part.bias is not None]
        whole = cls(
            sum(part.out_features for part in parts),
            parts[0].in_features,
            torch.cat([part.packed for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat(biases) if biases else None,
        )
        row = 0
        for part in parts:
            part.packed, part.scales = whole._rows(row, row + part.out_features)
            row += part.out_features
        return whole

    def fill(self, start: int, rows: torch.Tensor) -> None:
        """Packs `rows` (any number, in features), the weight's from `start` on. Raises StartupError where they do not
        begin and end with a block, which they do for every width that is a multiple of 64."""
        stop = start + len(rows)
        if start * self.in_features % BLOCK or stop * self.in_features % BLOCK:
            raise StartupError(
                f"rows of {self.in_features} weights cannot be packed a few at a time in blocks of {BLOCK}: "
                "LLAVA_QUANTIZATION=none"
            )
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(rows.contiguous(), blocksize=BLOCK, quant_type=KIND)
        for place, values in zip(self._rows(start, stop), (packed, state.absmax), strict=True):
            place.copy_(values)

    def _rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, last = start * self.in_features, stop * self.in_features
        return self.packed[first // 2 : last // 2], self.scales[first // BLOCK : last // BLOCK]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in features) to (..., out features)."""
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import QuantState

        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(self.scales, shape, blocksize=BLOCK, quant_type=KIND)
        mapped: torch.Tensor = matmul_4bit(states, self.packed.t(), state, bias=self.bias)
        return mapped

    @property
    def num_weights(self) -> int:
        return self.out_features * self.in_features


def pack_empty(layers: nn.Module, device: torch.device) -> None:
    """Puts a packed map, to be filled, in the place of each linear one. Raises StartupError."""
    for name, linear in _of_type(layers, nn.Linear):
        _replace(layers, name, PackedLinear.empty(linear, device))


def packed_by_transformers(dtype: torch.dtype) -> BitsAndBytesConfig:
    """For from_pretrained: the language model's layers alone, as `pack_empty` and `fill` would."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=KIND,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )


def take_over(layers: nn.Module) -> None:
    """Makes the maps that transformers packed ours, in the memory where they lie."""
    from bitsandbytes.nn import Linear4bit

    for name, linear in _of_type(layers, Linear4bit):
        state = linear.weight.quant_state
        packed = PackedLinear(linear.out_features, linear.in_features, linear.weight.data, state.absmax, linear.bias)
        _replace(layers, name, packed)


def _of_type(layers: nn.Module, kind: type[nn.Module]) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in layers.named_modules() if isinstance(module, kind)]


def _replace(layers: nn.Module, name: str, packed: PackedLinear) -> None:
    parent, _, own = name.rpartition(".")
    setattr(layers.get_submodule(parent), own, packed)
