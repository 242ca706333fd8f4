"""Old and new NVIDIA drivers, by fake driver files and fake libraries. Each case runs in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA_13 = "580.82.07"
NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Fri Oct 11 00:00:00 UTC 2024\nGCC version: 12.3.0\n"
OPEN_NVRM = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)  Mon Jan 5\n"
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the fake libraries")

# Prints the problem, then what a later dlopen of libcuda.so.1 finds, as torch, Triton and bitsandbytes open it.
PROGRAM = """
import ctypes, logging, os, sys
from pathlib import Path
from llava_serving.weights.cuda_driver import prepare_driver
logging.basicConfig(level=logging.INFO, format="%(message)s")
print(prepare_driver("2.13.0+cu130", sys.argv[2] or None, Path(sys.argv[1])))
print(ctypes.CDLL("libcuda.so.1").llava_fake_version())
print(os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"), os.environ.get("TRITON_LIBCUDA_PATH"))
"""


class Host:
    """A fake root of a file system, with the host's own libcuda.so.1 on the loader's path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host_libraries = root / "host"
        _compile(self.host_libraries / "libcuda.so.1", "libcuda.so.1", version=1, cu_init=0)

    def driver(self, text: str, file: str = "proc/driver/nvidia/version") -> "Host":
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self

    def compatibility(self, version: str, cu_init: int = 0, cuda: str = "cuda", answer: int = 2) -> "Host":
        folder = self.root / f"usr/local/{cuda}/compat"
        _compile(folder / f"libcuda.so.{version}", "libcuda.so.1", version=answer, cu_init=cu_init)
        (folder / "libcuda.so.1").symlink_to(f"libcuda.so.{version}")
        return self

    def run(self, cuda: str = "13.0") -> tuple[str, int, str, str]:
        """Returns the problem, the version of the libcuda.so.1 that is found then, two variables, and the log."""
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.root), cuda],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "LD_LIBRARY_PATH": str(self.host_libraries)},
            capture_output=True,
            text=True,
            check=True,
        )
        problem, found, variables = ended.stdout.splitlines()
        return problem, int(found), variables, ended.stderr


def _compile(file: Path, soname: str, version: int, cu_init: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    source = f"int llava_fake_version(void) {{ return {version}; }} int cuInit(unsigned flags) {{ return {cu_init}; }}"
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(file), "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("text", [NVRM.format("535.216.03"), OPEN_NVRM.format("550.54"), NVRM.format("570.211.01")])
def test_an_old_driver_gets_the_compatibility_libraries(host: Host, text: str) -> None:
    problem, found, variables, log = host.driver(text).compatibility(CUDA_13).run()
    assert (problem, found) == ("None", 2)
    assert variables == f"0 {host.root}/usr/local/cuda/compat"
    assert f"is older than 580: loaded NVIDIA's compatibility library {CUDA_13} from {host.root}" in log


@pytest.mark.parametrize("version", ["580.65.06", "580.159.04", "595.71", "1000.1.1"])
def test_a_new_driver_never_gets_them(host: Host, version: str) -> None:
    problem, found, variables, log = host.driver(NVRM.format(version)).compatibility(CUDA_13).run()
    assert (problem, found, variables) == ("None", 1, "None None")
    assert f"the host's NVIDIA driver {version} runs CUDA 13.0" in log


def test_the_driver_of_another_file_counts_if_the_first_is_not_there(host: Host) -> None:
    host.driver("535.216.03\n", "sys/module/nvidia/version").compatibility(CUDA_13)
    assert host.run()[:2] == ("None", 2)


def test_the_newest_compatibility_library_is_taken(host: Host) -> None:
    host.driver(NVRM.format("535.216.03")).compatibility("580.9.01", cuda="cuda-13.0", answer=3)
    host.compatibility("580.82.07", cuda="cuda-13.1", answer=4)
    assert host.run()[:2] == ("None", 4)


def test_the_driver_s_other_libraries_are_loaded_with_it(host: Host) -> None:
    host.driver(NVRM.format("535.216.03")).compatibility(CUDA_13)
    compiler = host.root / "usr/local/cuda/compat/libnvidia-ptxjitcompiler.so.1"
    compiler.write_text("no library")
    problem, *_ = host.run()
    assert "libnvidia-ptxjitcompiler.so.1: file too short" in problem


@pytest.mark.parametrize(
    ("driver", "library", "cause", "way_out"),
    [
        ("535.216.03", None, "has no compatibility libraries", "install torch==2.13.0+cu126 from PyTorch's own index"),
        ("535.216.03", "560.35.05", "has no compatibility libraries", "image openmpi5.0-cuda12.6-ubuntu24.04"),
        ("525.60.13", CUDA_13, "compatibility libraries need driver 535", "install torch==2.13.0+cu126"),
        ("470.256.02", CUDA_13, "compatibility libraries need driver 535", "update the host's driver"),
    ],
)
def test_a_driver_that_nothing_helps_is_named_with_the_way_out(
    host: Host, driver: str, library: str | None, cause: str, way_out: str
) -> None:
    host.driver(NVRM.format(driver))
    if library is not None:
        host.compatibility(library)
    problem, found, _, _ = host.run()
    assert found == 1, "nothing was loaded"
    assert problem.startswith(
        f"the host's NVIDIA driver {driver} is too old for torch 2.13.0+cu130, which needs driver 580 or later, and "
    )
    assert cause in problem
    assert problem.partition(": ")[2].startswith("update the host's driver")
    assert way_out in problem


@pytest.mark.parametrize(("status", "reason"), [(803, "not fit together"), (804, "not supported on this card")])
def test_a_library_that_cuda_refuses_is_named_with_cuda_s_error(host: Host, status: int, reason: str) -> None:
    problem, *_ = host.driver(NVRM.format("535.216.03")).compatibility(CUDA_13, cu_init=status).run()
    assert re.search(rf"fails with CUDA's error {status} \(.*{reason}\)", problem)


@pytest.mark.parametrize(
    "text", [None, "", "NVRM version: unknown\n", "\x00\xff", "GCC version 12.3\n", NVRM.format("no.version")]
)
def test_without_a_driver_that_can_be_read_torch_decides(host: Host, text: str | None) -> None:
    if text is not None:
        host.driver(text)
    assert host.compatibility(CUDA_13).run()[:3] == ("None", 1, "None None")


@pytest.mark.parametrize(("cuda", "version"), [("12.6", "535.216.03"), ("12.6", "525.60.13"), ("", "535.216.03")])
def test_an_older_cuda_and_a_torch_without_cuda_load_nothing(host: Host, cuda: str, version: str) -> None:
    assert host.driver(NVRM.format(version)).compatibility(CUDA_13).run(cuda)[:2] == ("None", 1)


# Starts the service as Azure does, on a host whose driver is too old and with a torch that says it has CUDA 13.
START = """
import runpy, sys, torch
from pathlib import Path
torch.version.cuda, root = "13.0", Path(sys.argv[1])
from llava_serving.weights import device
prepare = device.prepare_driver
device.prepare_driver = lambda version, cuda: prepare(version, cuda, root)
runpy.run_path(sys.argv[2], run_name="entry")["init"]()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "quantization"), [("score.py", "none"), ("score.py", "nf4"), ("batch/score.py", "none")]
)
def test_every_start_on_a_gpu_looks_at_the_driver_first(
    host: Host, tmp_path: Path, script: str, quantization: str
) -> None:
    host.driver(NVRM.format("535.216.03"))
    environment = {"LLAVA_DEVICE": "cuda", "LLAVA_QUANTIZATION": quantization, "AZUREML_BI_OUTPUT_PATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", START, str(host.root), script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "StartupError: LLAVA_DEVICE=cuda, and the host's NVIDIA driver 535.216.03 is too old" in ended.stderr


def test_device_auto_uses_the_cpu_and_says_why(host: Host) -> None:
    host.driver(NVRM.format("535.216.03"))
    program = START.rpartition("runpy.run_path")[0] + "print(device.choose_devices('auto'))"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(host.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[device(type='cpu')]"
    assert "the CPU computes: the host's NVIDIA driver 535.216.03 is too old" in ended.stderr
