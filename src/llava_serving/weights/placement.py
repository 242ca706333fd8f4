"""A model's memory on its devices, made before its weights are read, and the weights read into it."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import dispatch_model, init_empty_weights
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from ..model import fused_weights as joined
from ..model.nf4 import PackedLinear, pack_empty
from .chunk_reader import RowChunk, read_chunks
from .delta import MergedTensor
from .device import device_map, device_of

Places = Mapping[str, torch.device]

LAYERS = "model.language_model.layers"


def empty_model(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """The model without its parameters' memory; its buffers are there."""
    with init_empty_weights(include_buffers=False):
        return LlavaForConditionalGeneration(config)


def read_onto(
    model: LlavaForConditionalGeneration,
    merged_tensors: Mapping[str, MergedTensor],
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    packed: bool,
) -> LlavaForConditionalGeneration:
    """Gives an empty model its memory and reads its tensors, by the model's own names. Raises StartupError."""
    places = device_map(model, devices, dtype)
    allocate(model, places, dtype, packed)
    read(model, merged_tensors, places, dtype)
    return dispatch_model(model, places) if len(devices) > 1 else model.to(devices[0])


def allocate(model: nn.Module, places: Places, dtype: torch.dtype, packed: bool) -> None:
    """Gives every parameter memory on its device: one for all projections of a layer that read the same input."""
    layers = model.get_submodule(LAYERS)
    if packed:
        pack_empty(layers.children(), device_of(LAYERS, places), dtype)
    together: set[nn.Module] = set()
    for number, layer in layers.named_children():
        for linears in () if packed else joined.siblings(layer):
            joined.allocate(linears, device_of(f"{LAYERS}.{number}", places), dtype)
            together.update(linears)
    for name, module in model.named_modules():
        if module not in together:
            _allocate_own(name, module, places, dtype)


def _allocate_own(name: str, module: nn.Module, places: Places, dtype: torch.dtype) -> None:
    for kind, parameter in list(module.named_parameters(recurse=False)):
        memory = torch.empty(parameter.shape, dtype=dtype, device=device_of(f"{name}.{kind}", places))
        setattr(module, kind, nn.Parameter(memory, requires_grad=False))


def read(model: nn.Module, merged_tensors: Mapping[str, MergedTensor], places: Places, dtype: torch.dtype) -> None:
    """Fills the memory of `allocate`. Raises StartupError where a file cannot be read."""
    pinned = any(device.type == "cuda" for device in places.values())
    for piece in read_chunks(merged_tensors.items(), pinned):
        _place(piece, model, piece.rows(dtype, device_of(piece.name, places)))


def _place(piece: RowChunk, model: nn.Module, rows: torch.Tensor) -> None:
    name, _, kind = piece.name.rpartition(".")
    module = model.get_submodule(name)
    if isinstance(module, PackedLinear) and kind == "weight":
        module.fill(piece.start, rows)
    else:
        memory: torch.Tensor = getattr(module, kind).data
        memory[piece.start : piece.stop] = rows
