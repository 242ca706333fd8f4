"""Whether a model fits its device's memory, by its size and the free memory, before any of it is allocated."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..errors import StartupError
from .packing import packed_parts
from .process_memory import available_memory

GIB = 2**30
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class FreeMemory(NamedTuple):
    """The free memory of a device in bytes. `name` describes the device in messages."""

    name: str
    free: int
    is_gpu: bool = True


def check_memory(model: nn.Module, device: torch.device, dtype: torch.dtype, quantization: str) -> None:
    """Raises StartupError if the model, which may be on the meta device, is larger than the device's free memory."""
    if device.type == "cuda":
        gpus = [gpu_memory(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
        check_fits(model, dtype, quantization, gpus[device.index or 0], gpus)
    elif (available := available_memory()) is not None:
        check_fits(model, dtype, quantization, FreeMemory("this process", available, is_gpu=False), [])


def gpu_memory(device: torch.device) -> FreeMemory:
    return FreeMemory(f"{device} ({torch.cuda.get_device_name(device)})", torch.cuda.mem_get_info(device)[0])


def check_fits(
    model: nn.Module, dtype: torch.dtype, quantization: str, memory: FreeMemory, gpus: Sequence[FreeMemory]
) -> None:
    """Raises StartupError that says both sizes and what fits. `gpus` are all GPUs that the process sees."""
    size = model_bytes(model, dtype, quantization, GPU if memory.is_gpu else CPU)
    if size <= memory.free:
        return
    numbers = quantization if quantization != "none" else dtype_name(dtype)
    state = "free" if memory.is_gpu else "available"
    ways_out = ["take a GPU with more memory" if memory.is_gpu else "take a machine with more memory"]
    if quantization == "none":
        ways_out += _smaller_numbers(model, dtype, memory)
        if len(gpus) > 1 and size <= sum(gpu.free for gpu in gpus):
            total = gib(sum(gpu.free for gpu in gpus))
            ways_out.append(f"set LLAVA_DEVICE=balanced (the {len(gpus)} GPUs have {total} free)")
    raise StartupError(
        f"the model takes {gib(size)} in {numbers}, and {memory.name} has {gib(memory.free)} {state}: "
        f"{', or '.join(ways_out)}"
    )


def _smaller_numbers(model: nn.Module, dtype: torch.dtype, memory: FreeMemory) -> list[str]:
    """Returns the settings with which the model fits."""
    ways_out = []
    half = torch.float16 if memory.is_gpu else torch.bfloat16
    if dtype == torch.float32 and (size := model_bytes(model, half, "none")) <= memory.free:
        ways_out.append(f"set LLAVA_DTYPE={dtype_name(half)} ({gib(size)})")
    device, smaller = (GPU, ("int8", "nf4")) if memory.is_gpu else (CPU, ("int8", "int4"))
    for quantization in smaller:
        if (size := model_bytes(model, dtype, quantization, device)) <= memory.free:
            ways_out.append(f"set LLAVA_QUANTIZATION={quantization} ({gib(size)})")
    return ways_out


def model_bytes(model: nn.Module, dtype: torch.dtype, quantization: str, device: torch.device = CPU) -> int:
    """Returns the bytes of the model's weights as they are loaded. `quantization` is as in Settings.

    `device` matters for `int8` only, which packs fewer layers on a GPU.
    """
    # In bfloat16 a packed weight takes as many bytes as its matrix. No other layer is packed on more than one device.
    parts = [] if quantization == "none" else packed_parts(quantization, device, dtype)
    packed = {linear: part.num_bytes(linear) for part in parts for linear in part.linears(model)}
    unpacked = sum(parameter.numel() for parameter in model.parameters())
    unpacked -= sum(linear.weight.numel() for linear in packed)
    return unpacked * dtype.itemsize + sum(packed.values())


def gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
