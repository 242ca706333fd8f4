"""llama.cpp through llama-cpp-python: built from source here, with the language model converted to GGUF.

llama.cpp's converter refuses CLIP (`Unsupported model type: clip_vision_model`), so each picture is as many ordinary
tokens: the language model computes the same, and the vision tower's time is missing.
"""

import os
import sys
import tarfile
from functools import partial
from pathlib import Path

from .engine import Engine, adapter_command
from .environments import install, run
from .matrix_sizes import embedding_parameters

RELEASE = "0.3.36"
REQUIREMENTS = ("numpy", "jinja2", "pillow", "diskcache", "typing-extensions")
# Bits of a weight of the embedding, which a step does not read whole: Q8_0 and Q4_0 have a 16-bit scale for 32 weights.
PRECISIONS = {"bf16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
QUANTIZE = """
import ctypes, sys, llama_cpp
source, target, name = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


def llama_cpp_engines(cache: Path, checkpoint: Path) -> list[Engine]:
    return [_engine(cache / "llama_cpp", checkpoint, precision) for precision in PRECISIONS]


def _engine(folder: Path, checkpoint: Path, precision: str) -> Engine:
    python, model = folder / "venv" / "bin" / "python", folder / f"{precision}.gguf"
    return Engine(
        label=f"llama.cpp {precision}",
        family="llama.cpp",
        command=lambda port: adapter_command(python, "llama_cpp_adapter.py", model, checkpoint, port),
        prepare=partial(_prepare, folder, checkpoint, precision),
        python=python,
        weight_bytes=lambda: model.stat().st_size - _embedding_bytes(checkpoint, precision),
        has_vision=False,
        note="no vision tower: a picture is 256 ordinary tokens; one request after the other",
    )


def _embedding_bytes(checkpoint: Path, precision: str) -> int:
    return round(embedding_parameters(checkpoint) * PRECISIONS[precision] / 8)


def _prepare(folder: Path, checkpoint: Path, precision: str) -> None:
    python = install(folder, REQUIREMENTS)
    source = _source(folder, python)
    log = folder / "convert.log"
    if not (folder / "built").exists():
        build = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        run([str(python), "-m", "pip", "install", "--no-deps", str(source)], folder / "build.log", **build)
        (folder / "built").touch()
    whole = folder / "bf16.gguf"
    if not whole.exists():
        vendored = source / "vendor" / "llama.cpp"
        # The converter needs torch and transformers, which this Python has.
        command = [sys.executable, str(vendored / "convert_hf_to_gguf.py"), str(checkpoint), "--outtype", "bf16"]
        run([*command, "--outfile", f"{whole}.part"], log, PYTHONPATH=str(vendored / "gguf-py"))
        Path(f"{whole}.part").rename(whole)
    quantized = folder / f"{precision}.gguf"
    if not quantized.exists():
        run([str(python), "-c", QUANTIZE, str(whole), f"{quantized}.part", precision], log)
        Path(f"{quantized}.part").rename(quantized)


def _source(folder: Path, python: Path) -> Path:
    """Returns the folder of llama-cpp-python's source, which holds llama.cpp's own with its converter."""
    source = folder / f"llama_cpp_python-{RELEASE}"
    if not source.exists():
        download = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)]
        run([str(python), "-m", "pip", *download, f"llama-cpp-python=={RELEASE}"], folder / "build.log")
        with tarfile.open(folder / f"{source.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return source
