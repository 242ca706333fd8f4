"""What every evaluation writes at its end, and prints."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..evaluation.answers.asking import Answers

SUMMARY = "summary.json"


def check_answered(answers: Answers) -> list[str]:
    """Returns lines about the refused questions. Raises StartupError if there is no answer at all."""
    if not answers.refusals:
        return []
    first, message = next(iter(answers.refusals.items()))
    line = f"{len(answers.refusals)} questions were refused, the first is {first}: {message}"
    if not answers.texts:
        raise StartupError(line)
    return [line]


def write_summary(output: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Writes summary.json, with the time, and returns its content. Raises OSError."""
    content = {**summary, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(output / SUMMARY, content)
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half written. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
