"""This service, with settings from the command line: `llava-serving serve`, over HTTP as its callers use it."""

import argparse
import sys
from functools import partial
from pathlib import Path

from .engine import Engine
from .matrix_sizes import language_matrix_parameters

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "source"
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
QUANTIZATION_BITS = {"int8": 8, "int4": 4.5, "nf4": 4.5}
COMMON_SETTINGS = {"LLAVA_SELF_CHECK": "false", "LLAVA_REQUEST_TIMEOUT_SECONDS": "3600", "LLAVA_DEVICE": "cpu"}


def service_engine(text: str, checkpoint: Path) -> Engine:
    """Returns the engine of `LABEL:NAME=VALUE,...`. NAME is an environment variable, or `source`: another checkout of
    this repository, whose code is then run. Raises argparse.ArgumentTypeError."""
    label, _, pairs = text.partition(":")
    settings = dict(pair.partition("=")[::2] for pair in pairs.split(",") if pair)
    unknown = [name for name in settings if name != SOURCE and not name.isupper()]
    if unknown or not label:
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL:NAME=VALUE,...")
    source = Path(settings.pop(SOURCE, ROOT)).resolve()
    return Engine(
        label=f"here {label}",
        family="here",
        command=lambda port: [
            sys.executable, "-m", "llava_serving.tools.cli", "serve", "--port", str(port), "--model-dir",
            str(checkpoint),
        ],
        environment=COMMON_SETTINGS | {"PYTHONPATH": str(source / "src")} | settings,
        api="score",
        path="/score",
        weight_bytes=partial(_weight_bytes, checkpoint, settings),
        source=source,
    )  # fmt: skip


def _weight_bytes(checkpoint: Path, settings: dict[str, str]) -> int:
    quantization, dtype = settings.get("LLAVA_QUANTIZATION", "none"), settings.get("LLAVA_DTYPE", "float32")
    bits = QUANTIZATION_BITS.get(quantization) or DTYPE_BITS.get(dtype, 32)
    return round(language_matrix_parameters(checkpoint) * bits / 8)
