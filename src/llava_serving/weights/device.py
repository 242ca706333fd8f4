"""The devices that a process loads its model onto, and the dtype that it computes in."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from accelerate.utils import get_balanced_memory, infer_auto_device_map
from torch import nn

from ..errors import StartupError
from ..file_lock import lock_file
from .cuda_driver import prepare_driver
from .device_memory import dtype_name, gib, model_bytes
from .gpu_support import Gpu, check_dtype, check_gpu

logger = logging.getLogger(__name__)
DeviceMap = Mapping[str, torch.device]  # as in accelerate: each module's device, by the name of the module

BALANCED = "balanced"
NO_SPLIT_CLASSES = ["LlamaDecoderLayer", "CLIPEncoderLayer"]

# Open files keep their locks until the process ends, however it ends.
_gpu_locks: list[IO[str]] = []


def choose_devices(name: str) -> list[torch.device]:
    """Returns the devices of LLAVA_DEVICE=`name`. Raises StartupError if torch cannot use them.

    Of several GPUs each process of this machine gets its own, unless `name` is one GPU or spreads the model over all.
    """
    if name == "cpu":
        return [torch.device(name)]
    problem = prepare_driver(torch.__version__, torch.version.cuda)
    is_available = problem is None and torch.cuda.is_available()
    if name == "auto":
        if problem is not None:
            logger.warning("the CPU computes: %s", problem)
        name = "cuda" if is_available else "cpu"
    elif not is_available:
        raise StartupError(
            f"LLAVA_DEVICE={name}, and "
            + (problem or f"torch {torch.__version__} can use no CUDA device: {_cuda_problem()}")
        )
    devices = _devices_by_name(name)
    for device in devices:
        if device.type == "cuda":
            check_gpu(_gpu(device), torch.cuda.get_arch_list(), torch.__version__)
    return devices


def _devices_by_name(name: str) -> list[torch.device]:
    if name == BALANCED:
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{claim_gpu(torch.cuda.device_count(), Path(tempfile.gettempdir()))}"
    return [torch.device(name)]


def _gpu(device: torch.device) -> Gpu:
    return Gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _cuda_problem() -> str:
    """Returns torch's reason: there is no driver, or the driver is too old for the CUDA of this torch."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "there is none"


def claim_gpu(count: int, folder: Path) -> int:
    """Returns a GPU's index below `count` that no other living process has claimed, by a lock on a file in `folder`.

    Raises StartupError if all are claimed.
    """
    for index in range(count):
        file = (folder / f"llava-serving-gpu-{index}.lock").open("a")
        if lock_file(file):
            _gpu_locks.append(file)
            return index
        file.close()
    raise StartupError(f"each of the {count} GPUs is another worker's; WORKER_COUNT may be at most {count}")


def choose_device_map(model: nn.Module, devices: Sequence[torch.device], dtype: torch.dtype) -> dict[str, torch.device]:
    """Returns each module's device. The model may be on the meta device.

    Raises StartupError if the devices are too small.
    """
    if len(devices) == 1:
        return {"": devices[0]}
    memory = {index: torch.cuda.mem_get_info(device)[0] for index, device in enumerate(devices)}
    return {name: devices[index] for name, index in balanced_device_map(model, memory, dtype).items()}


def balanced_device_map(model: nn.Module, memory: dict[int, int], dtype: torch.dtype) -> dict[str, int]:
    """Returns each module's device by index: about as much on each, no layer split. `memory` is in bytes.

    Raises StartupError if the model does not fit.
    """
    balanced = get_balanced_memory(model, memory, no_split_module_classes=NO_SPLIT_CLASSES, dtype=dtype)
    device_map: dict[str, int | str] = infer_auto_device_map(
        model, balanced, no_split_module_classes=NO_SPLIT_CLASSES, dtype=dtype
    )
    not_placed = [name for name, device in device_map.items() if not isinstance(device, int)]
    if not_placed:
        raise StartupError(
            f"the model takes {gib(model_bytes(model, dtype, 'none'))} in {dtype_name(dtype)} and does not fit the "
            f"{len(memory)} GPUs, which have {', '.join(map(gib, memory.values()))} free (no room for "
            f"{not_placed[0]}): take more or larger GPUs{_nf4_way_out(model, max(memory.values()), dtype)}"
        )
    return {name: int(device) for name, device in device_map.items()}


def _nf4_way_out(model: nn.Module, free: int, dtype: torch.dtype) -> str:
    packed = model_bytes(model, dtype, "nf4")
    if packed > free:
        return ""
    return f", or set LLAVA_DEVICE=cuda and LLAVA_QUANTIZATION=nf4 ({gib(packed)} on one GPU)"


def device_of(name: str, device_map: DeviceMap) -> torch.device:
    """Returns the device of a module or parameter."""
    while name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


def choose_dtype(name: str, device: torch.device, quantization: str = "none") -> torch.dtype:
    """Returns the dtype of LLAVA_DTYPE=`name`. Raises StartupError if the GPU can only emulate it.

    On a CPU, weights in 8 or 4 bits go with activations in bfloat16, because keys and values then take half the memory.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if quantization in ("int8", "int4") else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    if device.type == "cuda":
        check_dtype(_gpu(device), dtype)
    return dtype
