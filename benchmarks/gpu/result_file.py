"""The JSON file of a run: the machine and the versions, and the result of each phase that has ended."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from json_file import write_json

PACKAGES = ("torch", "triton", "transformers", "accelerate", "numpy")


class ResultFile:
    """Replaces the whole file after every phase, so that a killed run leaves the results of the phases before."""

    def __init__(self, path: Path, device: str, root: Path, small: bool) -> None:
        self._path = path
        self.phases: dict[str, Any] = {}
        self._content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "small": small, "device": device,
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "versions": {package: _version(package) for package in PACKAGES}, "python": sys.version.split()[0],
            "commit": _first_line("git", "-C", str(root), "rev-parse", "HEAD"),
            "uncommitted_changes": _has_changes(root), "command": " ".join(sys.argv), "seconds": 0.0,
            "phases": self.phases,
        }  # fmt: skip

    def write(self, seconds: float) -> None:
        """`seconds` since the command started."""
        self._content["seconds"] = seconds
        write_json(self._path, self._content, indent=1)


def _first_line(*command: str) -> str | None:
    """Returns the first line that a command prints, or None if the command does not exist or fails."""
    if shutil.which(command[0]) is None:
        return None
    run = subprocess.run(command, capture_output=True, text=True)
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout else None


def _has_changes(root: Path) -> bool | None:
    """Returns whether `src` differs from the commit, or None if there is no repository."""
    if shutil.which("git") is None:
        return None
    run = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "src"], capture_output=True, text=True)
    return bool(run.stdout) if run.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
