"""Packs the linear layers of a model in memory, as a load of the service packs them while it reads their weights.

So a CPU can compute with the layers that the service uses on a GPU, and a random model needs no files.
"""

import torch
from torch import nn

from llava_serving.model.packed_linear import replace_linears
from llava_serving.weights.packing import PackedPart


@torch.inference_mode()
def pack(model: nn.Module, part: PackedPart) -> None:
    """Replaces the linear layers of `part` by packed ones, one transformer layer after the other."""
    for layer in model.get_submodule(part.name).children():
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        replace_linears([layer], part.make_empty)
        for name, linear in linears.items():
            packed = layer.get_submodule(name)
            packed.fill(0, linear.weight)
            if linear.bias is not None:
                packed.bias.copy_(linear.bias)
