"""JSON files of results, which are never seen half written."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Replaces the file, so that a killed run leaves the content before. Without an `indent` the JSON is compact."""
    separators = None if indent else (",", ":")
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(_rounded(content), indent=indent, separators=separators) + "\n")
    os.replace(partial, path)


def _rounded(value: Any) -> Any:
    """Returns floats rounded to five digits, which exceeds the precision of all measurements, and NaN and infinities
    as None."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    return value
