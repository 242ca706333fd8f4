"""Which devices a process loads its model onto, and in which numbers."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from accelerate.utils import get_balanced_memory, infer_auto_device_map
from torch import nn

from ..errors import StartupError
from ..file_lock import lock_file
from .card import Card, check_card, check_dtype

SPREAD = "balanced"
WHOLE = ["LlamaDecoderLayer", "CLIPEncoderLayer"]  # on one device each

# Held open as long as the process lives: the system gives the locks back when it ends, however it ends.
_claims: list[IO[str]] = []


def choose_devices(name: str) -> list[torch.device]:
    """`name` as in Settings. Of several GPUs each process of this machine gets one to itself, unless one is named or
    the model is spread over all."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith(("cuda", SPREAD)) and not torch.cuda.is_available():
        raise StartupError(f"LLAVA_DEVICE={name}, and torch {torch.__version__} can use no CUDA device: {_no_cuda()}")
    devices = _named(name)
    for device in devices:
        if device.type == "cuda":
            check_card(_card(device), torch.cuda.get_arch_list(), torch.__version__)
    return devices


def _named(name: str) -> list[torch.device]:
    if name == SPREAD:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{claim(torch.cuda.device_count(), Path(tempfile.gettempdir()))}"
    return [torch.device(name)]


def _card(device: torch.device) -> Card:
    return Card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _no_cuda() -> str:
    """Why, in torch's words: there is no driver, or one that is too old for the CUDA of this torch."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "there is none"


def device_map(model: nn.Module, devices: Sequence[torch.device], dtype: torch.dtype) -> dict[str, torch.device]:
    """Where each part of a model, which may be without memory, goes, as accelerate has it. Raises StartupError."""
    if len(devices) == 1:
        return {"": devices[0]}
    memory = {number: torch.cuda.mem_get_info(device)[0] for number, device in enumerate(devices)}
    return {part: devices[number] for part, number in spread(model, memory, dtype).items()}


def spread(model: nn.Module, memory: dict[int, int], dtype: torch.dtype) -> dict[str, int]:
    """Each part's device by number, about as much on each, layers whole; `memory` in bytes. Raises StartupError."""
    balanced = get_balanced_memory(model, memory, no_split_module_classes=WHOLE, dtype=dtype)
    placed: dict[str, int | str] = infer_auto_device_map(model, balanced, no_split_module_classes=WHOLE, dtype=dtype)
    beside = [part for part, device in placed.items() if not isinstance(device, int)]
    if beside:
        free = ", ".join(f"{size / 1e9:.1f} GB" for size in memory.values())
        raise StartupError(
            f"the model does not fit the {len(memory)} GPUs, which have {free} free: no room for {beside[0]}"
        )
    return {part: int(device) for part, device in placed.items()}


def device_of(name: str, places: Mapping[str, torch.device]) -> torch.device:
    """The device of a parameter in a device map."""
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def claim(count: int, folder: Path) -> int:
    """A number below `count` that no other living process has claimed in `folder`. Raises StartupError without one."""
    for number in range(count):
        lock = (folder / f"llava-serving-gpu-{number}.lock").open("a")
        if lock_file(lock):
            _claims.append(lock)
            return number
        lock.close()
    raise StartupError(f"each of the {count} GPUs is another worker's; WORKER_COUNT may be at most {count}")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    number: torch.dtype = getattr(torch, name)
    if device.type == "cuda":
        check_dtype(_card(device), number)
    return number
