"""The Triton kernels against float64: every case of kernel_cases.py."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_every_kernel_equals_float64_in_tritons_interpreter(seed: int) -> None:
    """Runs in a process of its own, because Triton chooses its interpreter when it is imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "kernel_cases", str(seed)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("cases pass\n")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(5))
def test_every_kernel_equals_float64_on_a_gpu(seed: int) -> None:
    from kernel_cases import run_all_cases

    num_cases = run_all_cases(seed)
    assert num_cases > 0
