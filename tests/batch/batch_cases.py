"""What the tests of this folder share: the demo's images and answers, and readers of a run's files."""

import base64
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.runner import BatchRunner
from llava_serving.errors import BadRequest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "demo" / "pictures"
DEFAULTS = RowDefaults("What is in the image?", {"max_new_tokens": 8}, 1_000_000)
MEANING = "the meaning of life is to be kind and to keep learning."
SHAPES = "a red circle, a blue cross, a yellow triangle"


def encoded_image(name: str) -> str:
    return base64.b64encode((IMAGES / name).read_bytes()).decode()


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def saved_lines(output: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of the saved answers."""
    lines = [line for path in (output / "kept").rglob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_columns(runner: BatchRunner, *files: tuple[Path, str]) -> list[tuple[Any, ...]]:
    return [result.columns() for result in runner.run(files)]


def refuse(_: bytes) -> Any:
    """Refuses every request, as an engine."""
    raise BadRequest("invalid_image", "no picture")
