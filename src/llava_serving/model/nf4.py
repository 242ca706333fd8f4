"""Linear maps whose weights are 4 bits each: NF4, by bitsandbytes' kernels.

16 values that cut a normal distribution into equal parts, scaled for each 64 weights by a float32: 4.5 bits a weight
(QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3, without its double quantization). bitsandbytes, a second of
every start, is imported where it is needed.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from ..errors import StartupError
from .fused_weights import as_one, siblings

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
    def empty(cls, linear: nn.Linear, device: torch.device, dtype: torch.dtype = torch.float32) -> "PackedLinear":
        """For weight and bias of `linear`, to be filled. Raises StartupError for a size that has no whole blocks."""
        return cls.side_by_side([linear], device, dtype)[0]

    @classmethod
    def side_by_side(
        cls, linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype
    ) -> "list[PackedLinear]":
        """The same for maps of one input, in memory that lies one after the other."""
        whole = cls(
            sum(linear.out_features for linear in linears),
            linears[0].in_features,
            torch.empty(sum(map(_num_blocks, linears)) * BLOCK // 2, 1, dtype=torch.uint8, device=device),
            torch.empty(sum(map(_num_blocks, linears)), dtype=torch.float32, device=device),
            _bias(linears, device, dtype),
        )
        return [
            cls(linear.out_features, whole.in_features, *views)
            for linear, views in zip(linears, whole._parts([linear.out_features for linear in linears]), strict=True)
        ]

    @classmethod
    def joined(cls, parts: "Sequence[PackedLinear]") -> "PackedLinear":
        """Maps of one input as one; the parts become views of it, if they are not already."""
        biases = [part.bias for part in parts if part.bias is not None]
        whole = cls(
            sum(part.out_features for part in parts),
            parts[0].in_features,
            as_one([part.packed for part in parts]),
            as_one([part.scales for part in parts]),
            as_one(biases) if biases else None,
        )
        views = whole._parts([part.out_features for part in parts])
        for part, (packed, scales, bias) in zip(parts, views, strict=True):
            part.packed, part.scales, part.bias = packed, scales, bias
        return whole

    def _parts(self, rows: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Views of `packed`, `scales` and `bias`, each part's so many rows of the weight."""
        start = 0
        for count in rows:
            bias = None if self.bias is None else self.bias[start : start + count]
            yield *self._rows(start, start + count), bias
            start += count

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


def pack_empty(layers: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Puts a packed map, to be filled, in the place of each linear one of LLaMA layers. Raises StartupError."""
    for layer in layers:
        groups = list(siblings(layer))
        joined = {linear for group in groups for linear in group}
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        alone = [[linear] for linear in linears if linear not in joined]
        places = {module: name for name, module in layer.named_modules()}
        for group in groups + alone:
            for linear, packed in zip(group, PackedLinear.side_by_side(group, device, dtype), strict=True):
                layer.set_submodule(places[linear], packed)


def _num_blocks(linear: nn.Linear) -> int:
    """Raises StartupError where they are not whole."""
    blocks, rest = divmod(linear.out_features * linear.in_features, BLOCK)
    if rest:
        size = f"{linear.out_features} x {linear.in_features}"
        raise StartupError(f"a weight of {size} cannot be packed in blocks of {BLOCK}: LLAVA_QUANTIZATION=none")
    return blocks


def _bias(linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    if linears[0].bias is None:
        return None
    return torch.empty(sum(linear.out_features for linear in linears), dtype=dtype, device=device)
