"""Which device a process loads its model onto, and in which numbers."""

import fcntl
import tempfile
from pathlib import Path
from typing import IO

import torch

from ..errors import StartupError

# Held open as long as the process lives: the system gives the locks back when it ends, however it ends.
_claims: list[IO[str]] = []


def choose_device(name: str) -> torch.device:
    """`name` as in Settings. Of several GPUs each process of this machine gets one to itself, unless one is named."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise StartupError(f"LLAVA_DEVICE={name}, and no CUDA device is visible to torch {torch.__version__}")
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{claim(torch.cuda.device_count(), Path(tempfile.gettempdir()))}"
    return torch.device(name)


def claim(count: int, folder: Path) -> int:
    """A number below `count` that no other living process has claimed in `folder`. Raises StartupError without one."""
    for number in range(count):
        lock = (folder / f"llava-serving-gpu-{number}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _claims.append(lock)
        return number
    raise StartupError(f"each of the {count} GPUs is another worker's; WORKER_COUNT may be at most {count}")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    number: torch.dtype = getattr(torch, name)
    return number
