"""OpenVINO GenAI: installed, and the checkpoint converted once for each precision."""

import shutil
from functools import partial
from pathlib import Path

from .engine import Engine, adapter_command
from .environments import install, run

REQUIREMENTS = (
    "openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0", "torch==2.13.0", "sentencepiece", "pillow",
)  # fmt: skip
PACKAGES = ("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf", "transformers", "torch")
# What the CPU plugin says of its properties KV_CACHE_PRECISION and DYNAMIC_QUANTIZATION_GROUP_SIZE.
DEFAULTS = "keys and values in 8 bits and rows quantised in groups of 32 while running, its defaults"
# The name of a precision, the exporter's options, and the type in which OpenVINO computes what is not quantised.
PRECISIONS = {
    "bf16": (("--weight-format", "fp16"), "bf16"),
    "int8": (("--weight-format", "int8"), "bf16"),
    "int4": (("--weight-format", "int4", "--sym", "--group-size", "128"), "bf16"),
}


def openvino_engines(cache: Path, checkpoint: Path) -> list[Engine]:
    folder = cache / "openvino"
    python = folder / "venv" / "bin" / "python"
    return [_engine(folder, python, checkpoint, precision) for precision in PRECISIONS]


def _engine(folder: Path, python: Path, checkpoint: Path, precision: str) -> Engine:
    model = folder / precision
    compute = PRECISIONS[precision][1]
    return Engine(
        label=f"OpenVINO {precision}",
        family="OpenVINO",
        command=lambda port: adapter_command(python, "openvino_adapter.py", model, checkpoint, port, precision=compute),
        prepare=partial(_prepare, folder, checkpoint, precision),
        python=python,
        weight_bytes=lambda: (model / "openvino_language_model.bin").stat().st_size,
        note=DEFAULTS,
    )


def _prepare(folder: Path, checkpoint: Path, precision: str) -> None:
    # transformers takes torchvision if it is there, and the released one needs CUDA's torch.
    install(folder, REQUIREMENTS, without=("torchvision",))
    model = folder / precision
    if (model / "exported").exists():
        return
    shutil.rmtree(model, ignore_errors=True)
    optimum = folder / "venv" / "bin" / "optimum-cli"
    options = ["--model", str(checkpoint), "--task", "image-text-to-text", *PRECISIONS[precision][0]]
    run([str(optimum), "export", "openvino", *options, str(model)], folder / "export.log")
    # The exporter leaves this file out, and the pipeline then takes other sizes of pictures.
    shutil.copy(checkpoint / "preprocessor_config.json", model)
    (model / "exported").touch()
