"""Reads files of JSON lines. A message about a wrong line names the file, the line and the field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import StartupError

Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Returns the rows of a file, without its blank lines. Raises StartupError if it holds none, or a wrong one."""
    rows = [_row(line, f"line {number} of {path}", kind) for number, line in _lines(path)]
    if not rows:
        raise StartupError(f"{path} is empty")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise StartupError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read as text ({error})") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also splits at U+2028, which JSON allows
        if line.strip():
            yield number, line


def _row(line: str, place: str, kind: type[Row]) -> Row:
    try:
        return kind.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StartupError(f"{place}: {'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{place} is no JSON object ({error})") from None
