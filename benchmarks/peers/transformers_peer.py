"""transformers' `generate`, in this project's own environment and behind the adapters' HTTP server."""

import sys
from functools import partial
from pathlib import Path

from .engine import Engine, adapter_command
from .matrix_sizes import language_matrix_parameters

DTYPES = {"bf16": ("bfloat16", 2), "fp32": ("float32", 4)}
PACKAGES = ("transformers", "torch")


def transformers_engines(checkpoint: Path) -> list[Engine]:
    return [_engine(checkpoint, precision) for precision in DTYPES]


def _engine(checkpoint: Path, precision: str) -> Engine:
    dtype, item_size = DTYPES[precision]
    python = Path(sys.executable)
    return Engine(
        label=f"transformers {precision}",
        family="transformers",
        command=lambda port: adapter_command(
            python, "transformers_adapter.py", checkpoint, checkpoint, port, dtype=dtype
        ),
        python=python,
        weight_bytes=partial(_weight_bytes, checkpoint, item_size),
        note="one request after the other",
    )


def _weight_bytes(checkpoint: Path, item_size: int) -> int:
    return language_matrix_parameters(checkpoint) * item_size
