"""The machine code of the Triton kernels at LLaVA-13b's sizes, for several GPUs. No GPU is needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-m", "compile_kernels", str(folder)], env=environment, check=True)
    return folder


def resource_usage(cubin: Path) -> dict[str, int]:
    """Returns the registers and the bytes of memory that a compiled kernel uses."""
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    output = subprocess.run([dump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", output)}


def test_no_kernel_spills_registers(compiled: Path) -> None:
    usages = {cubin.stem: resource_usage(cubin) for cubin in compiled.glob("*.cubin")}
    assert {int(name.split(".")[1]) for name in usages} == {75, 80, 90}
    assert len(usages) > 40
    assert {name: usage for name, usage in usages.items() if usage["LOCAL"] or usage["STACK"]} == {}


def test_every_kernel_fits_into_the_shared_memory_of_the_smallest_device(compiled: Path) -> None:
    """It has 64 KiB on sm_75, 99 KiB on sm_86 and sm_89, which run the code of sm_80, and 227 KiB on sm_90."""
    limits = {"75": 64 * 1024, "80": 99 * 1024, "90": 227 * 1024}
    sizes = {file.stem: int(file.read_text()) for file in compiled.glob("*.shared")}
    assert max(sizes.values()) > limits["80"]
    assert {name: size for name, size in sizes.items() if size > limits[name.split(".")[1]]} == {}


@pytest.mark.parametrize("kernel", ["_decode", "_one_row"])
def test_the_kernels_that_read_most_load_16_bytes_at_once(compiled: Path, kernel: str) -> None:
    for ptx in compiled.glob(f"{kernel}.*.ptx"):
        assert re.search(r"ld\.global[a-z0-9.:]*\.v4\.b32", ptx.read_text()), ptx.name
