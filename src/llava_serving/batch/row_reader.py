"""From files to rows: JSON lines of requests, CSV with `input_string`, pictures with a prompt.

Nothing that is wrong with a file or a row ends more than itself: it becomes a row that says what is wrong.
"""

import base64
import csv
import json
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadRequest, InternalError, RequestError, TooLarge
from .csv_records import records
from .file_names import printable

logger = logging.getLogger(__name__)
LINES = (".jsonl", ".ndjson")
TABLES = (".csv",)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
PROMPT_FILE = "prompt.txt"
TEXT_COLUMN, IMAGE_COLUMN = "input_string", "image"
URI = re.compile(r"data:|\w+://", re.IGNORECASE)


@dataclass(frozen=True)
class Defaults:
    """What pictures and CSV rows do not say themselves; `prompt.txt` beside a picture goes before `prompt`."""

    prompt: str | None
    parameters: Mapping[str, Any]
    max_bytes: int  # of one row's body


@dataclass(frozen=True)
class Row:
    """One request: row `number` of `file`, from 0; None is the file as a whole, which has no rows to tell of.

    `request` is the body, or what is wrong already.
    """

    file: str
    number: int | None
    request: bytes | RequestError

    @property
    def num_bytes(self) -> int:
        return len(self.request) if isinstance(self.request, bytes) else 0


def rows(path: Path, name: str, defaults: Defaults) -> Iterator[Row]:
    """The rows of a file in order, read as they are asked for; `name` is what the file is called in them."""
    try:
        yield from _rows(path, name, defaults)
    except OSError as error:
        yield Row(name, None, BadRequest("unreadable_input", f"the file cannot be read: {error.strerror or error}"))
    except Exception as error:
        logger.exception("%s could not be read to its end", name)
        message = f"the file could not be read to its end ({type(error).__name__}); the log says why"
        yield Row(name, None, InternalError("unreadable_input", message))


def _rows(path: Path, name: str, defaults: Defaults) -> Iterator[Row]:
    kind = path.suffix.lower()
    if path.name == PROMPT_FILE or path.name.startswith("."):
        return
    if kind in PICTURES:
        yield Row(name, 0, _picture(path, defaults))
        return
    _regular(path)
    if kind in LINES:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, defaults.max_bytes)):
                yield Row(name, number, line)
    elif kind in TABLES:
        yield from _table(path, name, defaults)
    else:
        accepted = ", ".join((*LINES, *TABLES, *PICTURES))
        yield Row(name, None, BadRequest("unsupported_input", f"the file is of no kind that is read: {accepted}"))


def _regular(path: Path) -> os.stat_result:
    """What is told of a file. Raises OSError for what is not there, and for pipes and the like, which may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | RequestError]:
    """Lines that are not blank; one that is too long is never held whole."""
    while line := file.readline(max_bytes + 2):
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while rest := file.readline(max_bytes):
                if rest.endswith(b"\n"):
                    break
            yield TooLarge("body_too_large", f"the line has more than {max_bytes:,} bytes")
        elif line.strip():
            yield line.strip()


def _table(path: Path, name: str, defaults: Defaults) -> Iterator[Row]:
    # What is not UTF-8 is told of the row it stands in.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = records(file, defaults.max_bytes)
        header = next(table, [])
        columns = [] if isinstance(header, csv.Error) else [column.strip() for column in header]
        if TEXT_COLUMN not in columns or len(set(columns)) < len(columns):
            message = f"the first line must name the columns, {TEXT_COLUMN} and perhaps {IMAGE_COLUMN}, each once"
            yield Row(name, None, BadRequest("invalid_table", message))
            return
        others = [column for column in columns if column not in (TEXT_COLUMN, IMAGE_COLUMN)]
        if others:
            logger.warning("%s: columns %s are not used", name, ", ".join(others))
        for number, cells in enumerate(table):
            try:
                yield Row(name, number, _record(cells, columns, path.parent, defaults))
            except RequestError as error:
                yield Row(name, number, error)


def _record(cells: list[str] | csv.Error, columns: list[str], folder: Path, defaults: Defaults) -> bytes:
    if isinstance(cells, csv.Error):
        raise BadRequest("invalid_table", f"the row is not CSV: {cells}")
    if len(cells) != len(columns):
        raise BadRequest("invalid_table", f"the row has {len(cells)} cells for {len(columns)} columns")
    cell = dict(zip(columns, cells, strict=True))
    text, image = cell[TEXT_COLUMN], cell.get(IMAGE_COLUMN, "").strip()
    if not (text + image).isprintable():
        _check_utf8(text + image)
    if not text.strip():
        raise BadRequest("invalid_table", f"the row's {TEXT_COLUMN} is empty")
    if "." in image and not URI.match(image):  # base64 has no dots
        image = _encoded(_beside(folder, image), defaults.max_bytes)
    return _body(text, image or None, defaults.parameters)


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("invalid_table", "the row is not UTF-8") from None


def _beside(folder: Path, image: str) -> Path:
    """A picture that a CSV names: in its own folder or below, never elsewhere on the machine."""
    try:
        path = (folder / image).resolve()
        is_inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL in the name; links in a circle
        is_inside = False
    if not is_inside:
        raise BadRequest("invalid_image", f"{image} is not in the folder of the CSV", IMAGE_COLUMN)
    return path


def _picture(path: Path, defaults: Defaults) -> bytes | RequestError:
    try:
        prompt = _prompt_beside(path) or defaults.prompt
        if not prompt:
            raise BadRequest(
                "no_prompt", f"nothing says what to ask the picture: put a {PROMPT_FILE} beside it, or set a prompt"
            )
        return _body(prompt, _encoded(path, defaults.max_bytes), defaults.parameters)
    except RequestError as error:
        return error


def _prompt_beside(path: Path) -> str:
    """What the picture's folder says to ask; nothing where it does not say."""
    beside = path.with_name(PROMPT_FILE)
    try:
        _regular(beside)
        return beside.read_text("utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise BadRequest("no_prompt", f"the {PROMPT_FILE} beside the picture is not UTF-8") from None
    except OSError as error:
        why = error.strerror or error
        raise BadRequest("no_prompt", f"the {PROMPT_FILE} beside the picture cannot be read: {why}") from None


def _encoded(path: Path, max_bytes: int) -> str:
    name = printable(path.name)
    try:
        if _regular(path).st_size > max_bytes:
            raise TooLarge("image_too_large", f"{name} has more than {max_bytes:,} bytes", IMAGE_COLUMN)
        return base64.b64encode(path.read_bytes()).decode()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        why = getattr(error, "strerror", None) or error
        raise BadRequest("invalid_image", f"{name} cannot be read: {why}", IMAGE_COLUMN) from None


def _body(text: str, image: str | None, parameters: Mapping[str, Any]) -> bytes:
    data: dict[str, Any] = {"input_string": [text], "parameters": dict(parameters)}
    if image is not None:
        data["images"] = [image]
    return json.dumps({"input_data": data}).encode()
