"""Which GPUs and dtypes the service refuses, with the way out."""

import pytest
import torch

from llava_serving.errors import StartupError
from llava_serving.weights.gpu_support import Gpu, check_dtype, check_gpu

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
# The compute capability, the targets of torch's build, and the way out if torch has no code for the GPU.
GPUS = {
    "Tesla V100": ((7, 0), CUDA_13, r"install torch==2\.13\.0\+cu126"),
    "Tesla T4": ((7, 5), CUDA_13, None),
    "NVIDIA A100": ((8, 0), CUDA_13, None),
    "NVIDIA L4": ((8, 9), CUDA_13, None),  # runs the code for 8.6
    "NVIDIA H100": ((9, 0), CUDA_13, None),
    "a future GPU": ((13, 0), CUDA_13, None),  # the driver compiles compute_120 for this GPU
    "a GPU that is too new": ((13, 0), CUDA_13[:-1], "install a newer torch"),
}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_without_code_in_torch_is_refused_with_the_way_out(name: str) -> None:
    capability, arch_list, way_out = GPUS[name]
    gpu = Gpu(name, capability)
    if way_out is None:
        check_gpu(gpu, arch_list, "2.13.0+cu130")
        return
    with pytest.raises(StartupError, match=f"no code for the {name}.*{way_out}"):
        check_gpu(gpu, arch_list, "2.13.0+cu130")


def test_bfloat16_is_refused_on_a_gpu_that_would_emulate_it() -> None:
    with pytest.raises(StartupError, match="set LLAVA_DTYPE=float16"):
        check_dtype(Gpu("Tesla T4", (7, 5)), torch.bfloat16)
    check_dtype(Gpu("Tesla T4", (7, 5)), torch.float16)
    check_dtype(Gpu("NVIDIA A100", (8, 0)), torch.bfloat16)
