"""The memory of a model on its devices, allocated before the weights are read into it."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import dispatch_model, init_empty_weights
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from ..model.fused_weights import allocate_fused, stacked_projections
from ..model.packed_linear import PackedLinear
from .chunk_reader import RowChunk, read_chunks
from .delta import MergedTensor
from .device import DeviceMap, choose_device_map, device_of
from .device_memory import check_memory
from .finite_values import extremes, refuse_non_finite
from .packing import LAYERS, packed_parts


def empty_model(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Returns a model whose parameters have no memory. Its buffers have."""
    with init_empty_weights(include_buffers=False):
        return LlavaForConditionalGeneration(config)


def load_weights(
    model: LlavaForConditionalGeneration,
    tensors: Mapping[str, MergedTensor],
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantization: str,
) -> None:
    """Allocates the memory of an empty model and reads its tensors, named as in its state dict.

    `quantization` is as in Settings.
    Raises StartupError if the model does not fit the devices, a file cannot be read or a weight is not finite.
    """
    if len(devices) == 1:
        check_memory(model, devices[0], dtype, quantization)
    device_map = choose_device_map(model, devices, dtype)
    allocate(model, device_map, dtype, quantization)
    _read_weights(model, tensors, device_map, dtype)
    if len(devices) > 1:
        dispatch_model(model, device_map)
    else:
        model.to(devices[0])  # the buffers, which have memory already


def allocate(model: nn.Module, device_map: DeviceMap, dtype: torch.dtype, quantization: str) -> None:
    """Gives every parameter memory on its device. Projections of a layer with the same input share one memory."""
    parts = packed_parts(quantization, next(iter(device_map.values())), dtype)
    for part in parts:
        part.replace(model)
    fused: set[nn.Module] = set()
    for index, layer in model.get_submodule(LAYERS).named_children():
        for linears in stacked_projections(layer) if not parts else ():
            allocate_fused(linears, device_of(f"{LAYERS}.{index}", device_map), dtype)
            fused.update(linears)
    for name, module in model.named_modules():
        if module not in fused:
            _allocate_parameters(name, module, device_map, dtype)


def _allocate_parameters(module_name: str, module: nn.Module, device_map: DeviceMap, dtype: torch.dtype) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        memory = torch.empty(parameter.shape, dtype=dtype, device=device_of(f"{module_name}.{name}", device_map))
        setattr(module, name, nn.Parameter(memory, requires_grad=False))


def _read_weights(
    model: nn.Module, tensors: Mapping[str, MergedTensor], device_map: DeviceMap, dtype: torch.dtype
) -> None:
    pinned = any(device.type == "cuda" for device in device_map.values())
    read: list[tuple[str, torch.Tensor]] = []
    for chunk in read_chunks(tensors.items(), pinned):
        rows = chunk.rows(dtype, device_of(chunk.name, device_map))
        read.append((chunk.name, extremes(rows)))
        _copy_rows(chunk, model, rows)
    refuse_non_finite(read)


def _copy_rows(chunk: RowChunk, model: nn.Module, rows: torch.Tensor) -> None:
    module_name, _, name = chunk.name.rpartition(".")
    module = model.get_submodule(module_name)
    if isinstance(module, PackedLinear) and name == "weight":
        module.fill(chunk.start, rows)
    else:
        memory: torch.Tensor = getattr(module, name).data
        memory[chunk.start : chunk.stop] = rows
