"""Whether the host's NVIDIA driver runs torch's CUDA. If it is too old, loads NVIDIA's compatibility libraries.

A container brings CUDA, and the host brings the driver. For hosts with an older driver NVIDIA's images carry newer user
libraries of the driver (NVIDIA, "CUDA Compatibility", forward compatibility). Libraries that are older than the host's
driver fail with CUDA's error 803, so they are loaded only where they are needed, and no LD_LIBRARY_PATH names them.
"""

import ctypes
import logging
import os
import re
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)
ROOT = Path("/")
# NVIDIA's oldest driver for a major version of CUDA ("CUDA Compatibility", minor version compatibility).
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
# The oldest driver below the compatibility libraries of CUDA 13.
OLDEST_COMPATIBLE_DRIVER = 535
OTHER_BUILD, OTHER_IMAGE, OTHER_CUDA = "+cu126", "openmpi5.0-cuda12.6-ubuntu24.04", 12
CUDA_ERRORS = {100: "no device", 803: "driver and libraries do not fit together", 804: "not supported on this card"}


@cache
def prepare_driver(torch_version: str, cuda: str | None, root: Path = ROOT) -> str | None:
    """Makes the host's driver usable for torch's `cuda`, such as "13.0". Call it before anything loads CUDA.

    Returns why CUDA cannot work, and the way out. Returns None if CUDA works, and if this torch has no CUDA or no
    NVIDIA driver is found: then torch itself knows the reason.
    """
    driver = _driver_version(root)
    if cuda is None or driver is None:
        return None
    needed = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if _major(driver) >= needed:
        logger.info("the host's NVIDIA driver %s runs CUDA %s", driver, cuda)
        return None
    problem = _load_compatibility_libraries(driver, needed, root)
    if problem is None:
        return None
    return (
        f"the host's NVIDIA driver {driver} is too old for torch {torch_version}, which needs driver {needed} or "
        f"later, and {problem}: {_way_out(driver, torch_version)}"
    )


def _driver_version(root: Path) -> str | None:
    """Returns the version of the kernel's module, None without one."""
    for file in ("proc/driver/nvidia/version", "sys/module/nvidia/version"):
        try:
            text = (root / file).read_text("utf-8", "replace")
        except OSError:
            continue
        # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Fri Oct ..."; a line about GCC follows.
        if match := re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)*)\b", text.partition("\n")[0]):
            return match[1]
    return None


def _load_compatibility_libraries(driver: str, needed: int, root: Path) -> str | None:
    """Returns what prevents it, None if they are loaded."""
    if _major(driver) < OLDEST_COMPATIBLE_DRIVER:
        return f"NVIDIA's compatibility libraries need driver {OLDEST_COMPATIBLE_DRIVER}"
    library = _newest_library(root)
    if library is None or _major(_library_version(library)) < needed:
        return "this image has no compatibility libraries for it in /usr/local/cuda/compat"
    version, folder = _library_version(library), library.parent
    try:
        # The name stays the same, so whoever asks for libcuda.so.1 later gets this one.
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for other in sorted(folder.glob("libnvidia-*.so.[0-9]")):  # which libcuda opens by name when it compiles PTX
            ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
        status = loaded.cuInit(0)
    except OSError as error:
        return f"its compatibility library {version} cannot be loaded ({error})"
    if status:
        reason = CUDA_ERRORS.get(status, "see CUDA's documentation")
        return f"its compatibility library {version} fails with CUDA's error {status} ({reason})"
    os.environ.setdefault("TRITON_LIBCUDA_PATH", str(folder))  # where Triton links its launcher
    # NVML belongs to the host's driver. Torch must ask the libraries that were loaded whether CUDA is available.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    logger.info(
        "the host's NVIDIA driver %s is older than %s: loaded NVIDIA's compatibility library %s from %s",
        driver, needed, version, folder,
    )  # fmt: skip
    return None


def _newest_library(root: Path) -> Path | None:
    libraries = root.glob("usr/local/cuda*/compat/libcuda.so.1")
    return max(libraries, key=lambda library: _parts(_library_version(library)), default=None)


def _library_version(library: Path) -> str:
    """Returns the version in the name of the file behind the link, such as libcuda.so.580.82.07."""
    return library.resolve().name.removeprefix("libcuda.so.")


def _way_out(driver: str, torch_version: str) -> str:
    if _major(driver) < OLDEST_DRIVERS[OTHER_CUDA] or torch_version.endswith(OTHER_BUILD):
        return "update the host's driver"
    version = torch_version.partition("+")[0]
    return (
        f"update the host's driver, or install torch=={version}{OTHER_BUILD} from PyTorch's own index, with the image "
        f"{OTHER_IMAGE}"
    )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _major(version: str) -> int:
    return (*_parts(version), 0)[0]
