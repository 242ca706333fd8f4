"""The one JSON that a run writes: what it ran on, and each phase as soon as it has ended."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "accelerate", "numpy")


class Record:
    """Written whole after every phase, so that a run that is killed leaves what there was."""

    def __init__(self, path: Path, device: str, root: Path, small: bool) -> None:
        self._path = path
        self.phases: dict[str, Any] = {}
        self._told = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "small": small, "device": device,
            "driver": _line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "versions": {package: _version(package) for package in PACKAGES}, "python": sys.version.split()[0],
            "commit": _line("git", "-C", str(root), "rev-parse", "HEAD"), "uncommitted_changes": _changes(root),
            "command": " ".join(sys.argv), "seconds": 0.0, "phases": self.phases,
        }  # fmt: skip

    def write(self, seconds: float) -> None:
        """`seconds` since the command started."""
        self._told["seconds"] = seconds
        written = self._path.with_name(self._path.name + ".part")
        written.write_text(json.dumps(_rounded(self._told), indent=1) + "\n")
        os.replace(written, self._path)


def _rounded(value: Any) -> Any:
    """Floats to five digits, which is more than any of them is worth; what is no number as None."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    return value


def _line(*command: str) -> str | None:
    """The first line that a command prints; None where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    run = subprocess.run(command, capture_output=True, text=True)
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout else None


def _changes(root: Path) -> bool | None:
    """Whether the engine is not what the commit has; None where there is no repository."""
    if shutil.which("git") is None:
        return None
    run = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "src"], capture_output=True, text=True)
    return bool(run.stdout) if run.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
