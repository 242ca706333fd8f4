"""The Triton kernels of a decode step, against float64."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_in_the_interpreter_every_kernel_is_right(seed: int) -> None:
    """In a process of its own: whether Triton interprets is decided when it is imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "kernel_cases", str(seed)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("cases hold\n")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(5))
def test_on_a_gpu_every_kernel_is_right(seed: int) -> None:
    from kernel_cases import all_cases

    assert all_cases(seed) > 0
