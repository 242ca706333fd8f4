"""Which linear layers are packed while they are loaded, and in which form."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import StartupError
from ..model import int8_linear, nf4
from ..model.cpu_kernels.cpu_linear import CpuLinear
from ..model.cpu_kernels.library import load_kernels
from ..model.cpu_kernels.measured_choice import packed_is_faster
from ..model.cpu_kernels.packed_weight import NumberFormat, packed_bytes
from ..model.packed_linear import MakeEmpty, replace_linears

LAYERS, VISION_LAYERS, LM_HEAD = "model.language_model.layers", "model.vision_tower.encoder.layers", "lm_head"


@dataclass(frozen=True)
class PackedPart:
    """A part of the model whose linear layers are packed: a list of transformer layers or one layer, by name.

    `num_bytes` maps a linear module to the bytes of its packed weight.
    """

    name: str
    make_empty: MakeEmpty
    num_bytes: Callable[[nn.Linear], int]

    def linears(self, model: nn.Module) -> Iterator[nn.Linear]:
        """Yields the linear modules of an empty model that belong to this part."""
        return (module for module in model.get_submodule(self.name).modules() if isinstance(module, nn.Linear))

    def replace(self, model: nn.Module) -> None:
        """Replaces them by packed layers without content. Raises StartupError."""
        part = model.get_submodule(self.name)
        if isinstance(part, nn.Linear):
            model.set_submodule(self.name, self.make_empty([part])[0])
        else:
            replace_linears(part.children(), self.make_empty)


def packed_parts(quantization: str, device: torch.device, dtype: torch.dtype) -> Sequence[PackedPart]:
    """Returns the parts that LLAVA_QUANTIZATION=`quantization` packs.

    On a CPU, weights in bfloat16 are packed too where that is faster: the same numbers in another order.
    Raises StartupError if the device has no such layers.
    """
    if quantization == "nf4":
        return [_in_nf4(device, dtype)]
    if quantization == "none":
        if device.type == "cpu" and dtype == torch.bfloat16 and load_kernels() is not None and packed_is_faster():
            return _on_cpu(NumberFormat.BFLOAT16, NumberFormat.BFLOAT16)
        return []
    if device.type == "cpu":
        return _on_cpu(NumberFormat[quantization.upper()], NumberFormat.INT8)
    if quantization == "int8":
        return [int8_on_gpu(device, dtype)]
    raise StartupError(f"LLAVA_QUANTIZATION={quantization} is for a CPU; on a GPU set int8 or nf4")


def _in_nf4(device: torch.device, dtype: torch.dtype) -> PackedPart:
    return PackedPart(
        LAYERS,
        lambda linears: nf4.NF4Linear.empty_fused(linears, device, dtype),
        lambda linear: nf4.packed_bytes(linear.out_features * linear.in_features),
    )


def int8_on_gpu(device: torch.device, dtype: torch.dtype) -> PackedPart:
    """Returns the language model's layers in 8 bits for a GPU. Tests and benchmarks use it on a CPU too.

    The projection to logits would save 1 % of a step's bytes. The vision tower computes many rows at once, so that its
    time does not depend on the bytes of its weights.
    """
    return PackedPart(
        LAYERS,
        lambda linears: int8_linear.Int8Linear.empty_fused(linears, device, dtype),
        lambda linear: int8_linear.packed_bytes(linear.out_features, linear.in_features),
    )


def _on_cpu(layers: NumberFormat, others: NumberFormat) -> list[PackedPart]:
    """Returns the language model's layers, and the vision tower and the projection to logits in the format `others`."""
    return [_in_format(LAYERS, layers), _in_format(VISION_LAYERS, others), _in_format(LM_HEAD, others)]


def _in_format(name: str, number_format: NumberFormat) -> PackedPart:
    return PackedPart(
        name,
        lambda linears: CpuLinear.empty_fused(linears, number_format),
        lambda linear: packed_bytes(linear.out_features, linear.in_features, number_format),
    )
