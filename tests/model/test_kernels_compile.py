"""What Triton makes of the kernels at LLaVA-13b's sizes, for cards that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

COMPILE = """
import sys
from pathlib import Path
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llava_serving.model.kernels import activation, decode_attention, linear, norm, rotary

HIDDEN, WIDE, HEADS, SIZE = 5120, 13824, 40, 128


def variants(capability):
    early = {"EARLY": capability >= 90}
    shape = {"NUM_HEADS": HEADS, "NUM_KV_HEADS": HEADS, "SIZE": SIZE, "HALF_BLOCK": SIZE // 2}
    for splits in (1, 2, 8):
        floats = {"partial", "statistics"} if splits > 1 else set()
        yield decode_attention._decode, shape | early | {"BLOCK_SIZE": 16, "TILE": decode_attention.TILE, "SPLITS": splits}, floats, 4, 0
    yield decode_attention._join_splits, early | {"SIZE": SIZE, "BLOCK": SIZE, "SPLITS": 8}, {"partial", "statistics"}, 4, 0
    yield rotary._rotate_and_cache, shape | early | {"HEADS": rotary.HEADS}, set(), 4, 0
    yield norm._add_rms_norm, early | {"SIZE": HIDDEN, "BLOCK": 8192, "ADDS": True}, set(), 8, 0
    yield activation._silu_product, early | {"SIZE": WIDE, "BLOCK": activation.BLOCK}, set(), 4, 0
    for width, rows, norms, gates, adds in (
        (HIDDEN, 1, True, False, False), (HIDDEN, 1, True, True, False), (HIDDEN, 2, False, False, True), (WIDE, 2, False, False, True),
    ):
        flags = {"GATES": gates, "ADDS": adds, "BIAS": False}
        sizes = {"K": width, "ROWS": rows, "CHUNK": linear.CHUNK, "EVEN": width % linear.CHUNK == 0}
        yield linear._one_row, sizes | flags | early | {"NORMS": norms}, set(), 4, 0
        if capability >= 80:
            tile, two, one = (256, 3, 4) if capability >= 90 else (128, 2, 4)
            tiles = {"K": width, "TILE_M": linear.MAX_ROWS, "TILE_N": linear.TILE_N, "TILE_K": tile, "EVEN": width % tile == 0}
            yield linear._few_rows, tiles | flags | early | {"PRECISION": "tf32"}, set(), 4, two if gates else one


INTEGERS = {"positions": "*i32", "tables": "*i32", "slots": "*i64"}
NUMBERS = {"scale": "fp32", "epsilon": "fp32", "N": "i32", "M": "i32", "row_stride": "i32", "table_stride": "i32", "head_stride": "i64"}
folder = Path(sys.argv[1])
for capability in (75, 80, 90):
    for number, (kernel, constants, floats, warps, stages) in enumerate(variants(capability)):
        signature = {}
        for name in kernel.arg_names:
            kind = "*fp32" if name in floats else INTEGERS.get(name, NUMBERS.get(name, "*fp16"))
            signature[name] = "constexpr" if name in constants else kind
        aligned = {(place,): [["tt.divisibility", 16]] for place, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in ("head_stride", "N")}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": warps} | ({"num_stages": stages} if stages else {})
        built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        name = f"{kernel.__name__}.{capability}.{number}"
        (folder / f"{name}.cubin").write_bytes(built.asm["cubin"])
        (folder / f"{name}.ptx").write_text(built.asm["ptx"])
"""  # noqa: E501
# Bytes of shared memory that a program may take (CUDA C++ Programming Guide, compute capabilities).
SHARED = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE, str(folder)], env=environment, check=True)
    return folder


def resources(cubin: Path) -> dict[str, int]:
    """Registers and bytes that the assembler gave a kernel."""
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([dump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}


def test_no_kernel_spills_registers(built: Path) -> None:
    used = {cubin.stem: resources(cubin) for cubin in built.glob("*.cubin")}
    assert {int(name.split(".")[1]) for name in used} == set(SHARED)
    assert len(used) > 40
    assert {name: its for name, its in used.items() if its["LOCAL"] or its["STACK"]} == {}


@pytest.mark.parametrize("kernel", ["_decode", "_one_row"])
def test_what_reads_most_reads_16_bytes_at_a_time(built: Path, kernel: str) -> None:
    for ptx in built.glob(f"{kernel}.*.ptx"):
        assert re.search(r"ld\.global[a-z0-9.:]*\.v4\.b32", ptx.read_text()), ptx.name
