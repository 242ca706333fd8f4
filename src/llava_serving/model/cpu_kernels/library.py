"""Compiles the C files of this folder for this machine's processor, and loads them.

A compiler is needed at run time, as Triton needs one on a GPU. So the machine code always suits the processor, and no
binary is downloaded or committed. Compiling takes about a second; nothing is cached, because a library in a shared
folder could be another user's.
"""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
SOURCES = ("attention.c", "linear.c", "parallel.c", "prefill.c", "row_wise.c")
FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-fPIC",
    "-shared",
)  # fmt: skip
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_SECONDS = 120
ROW_DTYPES = (torch.float32, torch.bfloat16)  # of the activations that the kernels read and write


Pointer = ctypes.c_void_p


class Unavailable(Exception):
    """The kernels cannot be compiled or loaded here. The message says why."""


_loading = threading.Lock()


def load_in_background() -> None:
    """Begins to compile the kernels in a thread of their own. `load_kernels` waits for it."""
    threading.Thread(target=load_kernels, name="load-kernels").start()


def load_kernels() -> ctypes.CDLL | None:
    """Returns the compiled kernels, or None if this machine cannot have them. The log says which, and why."""
    with _loading:  # the cache alone would let two threads compile
        return _load_kernels()


@cache
def _load_kernels() -> ctypes.CDLL | None:
    started = time.monotonic()
    try:
        library = compile_kernels()
    except Unavailable as problem:
        logger.warning("CPU kernels: torch's operators, slower: %s", problem)
        return None
    seconds = time.monotonic() - started
    logger.info("CPU kernels: %s, compiled in %.1f s", "AVX-512" if library.llava_lanes() == 16 else "AVX2", seconds)
    return library


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Returns the address of a tensor's memory, as a field of the kernels' structures."""
    return None if tensor is None else tensor.data_ptr()


def compile_kernels(*flags: str) -> ctypes.CDLL:
    """Compiles the kernels with these flags on top of FLAGS, and loads them. Raises Unavailable."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(
            f"the kernels are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
        )
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), *COMPILERS)))), None)
    if compiler is None:
        raise Unavailable(f"no C compiler is on the PATH ({', '.join(COMPILERS)})")
    with tempfile.TemporaryDirectory(prefix="llava-kernels-") as folder:
        library = Path(folder) / "kernels.so"
        _compile([compiler, *FLAGS, *flags], library)
        try:
            return ctypes.CDLL(str(library))  # stays loaded without its file
        except OSError as error:  # for example a folder for temporary files from which nothing may be executed
            raise Unavailable(f"the compiled library cannot be loaded ({error})") from None


def _compile(command: Sequence[str], library: Path) -> None:
    compiler, sources = command[0], [str(Path(__file__).parent / name) for name in SOURCES]
    try:
        run = subprocess.run(
            [*command, *sources, "-o", str(library), "-lm"],
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{compiler} does not run ({error})") from None
    if run.returncode:
        reason = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip())
        raise Unavailable(f"{compiler} fails: {reason}")
