"""Runs `llava-serving evaluate`, and reads what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from server import ROOT, Server


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llava_serving", "evaluate", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src")} | variables


def evaluate(*arguments: object, status: int = 0, **variables: str) -> str:
    """Returns what the command prints to standard output, or to standard error if `status` is not 0."""
    done = subprocess.run(
        command(*arguments), env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def score_url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/score"


def summary(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "summary.json").read_text("utf-8"))
    return content


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
