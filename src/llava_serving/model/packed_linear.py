"""Linear layers whose weights are stored in another form than a matrix in the model's dtype."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .fused_weights import stacked_projections


class PackedLinear(nn.Module, ABC):
    """A linear layer that packs its weight (out features, in features) a few rows at a time, while they are read."""

    out_features: int
    in_features: int
    bias: torch.Tensor | None
    # Inputs are rounded to integers, so that the smallest difference of an input can change the output by a whole step.
    rounds_inputs = False

    @abstractmethod
    def fill(self, start: int, rows: torch.Tensor) -> None:
        """Packs `rows` (rows, in features) into the weight from row `start` on. Raises StartupError."""

    @classmethod
    @abstractmethod
    def fuse(cls, linears: "Sequence[Any]") -> "PackedLinear":
        """Returns one layer that computes all of `linears`, which have the same input."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases."""
        return self.out_features * (self.in_features + (self.bias is not None))


# Makes uninitialised layers of the sizes of linear modules with the same input. Raises StartupError.
MakeEmpty = Callable[[Sequence[nn.Linear]], Sequence[PackedLinear]]


def replace_linears(layers: Iterable[nn.Module], make_empty: MakeEmpty) -> None:
    """Replaces every linear module of transformer layers. In LLaMA's, projections with the same input stay together.

    Raises StartupError.
    """
    for layer in layers:
        stacked = list(stacked_projections(layer)) if hasattr(layer.self_attn, "o_proj") else []
        fused = {linear for linears in stacked for linear in linears}
        single = [[module] for module in layer.modules() if isinstance(module, nn.Linear) and module not in fused]
        names = {module: name for name, module in layer.named_modules()}
        for linears in stacked + single:
            for linear, replacement in zip(linears, make_empty(linears), strict=True):
                layer.set_submodule(names[linear], replacement)


def linear_device(linear: Any) -> torch.device:
    """Returns the device of a linear module or of a packed one."""
    device: torch.device = linear.device if isinstance(linear, PackedLinear) else linear.weight.device
    return device
