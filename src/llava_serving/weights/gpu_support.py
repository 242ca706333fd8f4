"""Whether the installed torch runs on a GPU, and whether the GPU computes in a dtype."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import StartupError

ComputeCapability = tuple[int, int]

# torch's build for an older CUDA, which still has code for GPUs that newer builds dropped: from Maxwell to Hopper.
OLDER_CUDA, OLDER_BUILD, OLDER_CAPABILITIES = "12.6", "+cu126", ((5, 0), (9, 0))
MIN_BFLOAT16_CAPABILITY = (8, 0)


class Gpu(NamedTuple):
    name: str
    capability: ComputeCapability

    def __str__(self) -> str:
        return f"{self.name} (compute capability {_dotted(self.capability)})"


class _Arch(NamedTuple):
    """A target of nvcc: "sm_90a" is ("sm", (9, 0), "a")."""

    kind: str
    capability: ComputeCapability
    suffix: str


def check_gpu(gpu: Gpu, arch_list: Sequence[str], torch_version: str) -> None:
    """Raises StartupError if torch has no code for the GPU. `arch_list` is torch.cuda.get_arch_list()."""
    archs = [arch for arch in map(_parse_arch, arch_list) if arch]
    if not archs or any(_runs_on(gpu.capability, arch) for arch in archs):
        return
    raise StartupError(
        f"torch {torch_version} has no code for the {gpu}, only for {', '.join(arch_list)}: "
        f"{_advice(gpu, archs, torch_version)}"
    )


def _advice(gpu: Gpu, archs: Sequence[_Arch], torch_version: str) -> str:
    version, _, build = torch_version.partition("+")
    oldest, newest = OLDER_CAPABILITIES
    if gpu.capability > max(arch.capability for arch in archs):
        return "install a newer torch"
    if oldest <= gpu.capability <= newest and f"+{build}" != OLDER_BUILD:
        return f"install torch=={version}{OLDER_BUILD} from PyTorch's own index, with the image of CUDA {OLDER_CUDA}"
    return "take another GPU, or set LLAVA_DEVICE=cpu"


def check_dtype(gpu: Gpu, dtype: torch.dtype) -> None:
    """Raises StartupError for a dtype that the GPU can only emulate."""
    if dtype == torch.bfloat16 and gpu.capability < MIN_BFLOAT16_CAPABILITY:
        needed = _dotted(MIN_BFLOAT16_CAPABILITY)
        raise StartupError(
            f"LLAVA_DTYPE=bfloat16, and the {gpu} cannot compute in it: that takes compute capability {needed}; "
            "set LLAVA_DTYPE=float16"
        )


def _parse_arch(arch: str) -> _Arch | None:
    """Returns None for a target that is not NVIDIA's."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch)
    return _Arch(match[1], (int(match[2]), int(match[3])), match[4]) if match else None


def _runs_on(capability: ComputeCapability, arch: _Arch) -> bool:
    """Says whether code for `arch` runs on a GPU (CUDA C++ Programming Guide, "Compatibility").

    A binary runs on GPUs of its major version from its minor version on. PTX runs on all later GPUs. With suffix "a"
    both run only on the GPU that they are for, with "f" only on its family, which is its major version.
    """
    if arch.suffix == "a":
        return capability == arch.capability
    if arch.kind == "sm" or arch.suffix == "f":
        return capability[0] == arch.capability[0] and capability[1] >= arch.capability[1]
    return capability >= arch.capability


def _dotted(capability: ComputeCapability) -> str:
    return ".".join(map(str, capability))
