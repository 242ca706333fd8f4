"""Reads the rows of input files: JSON lines of requests, CSV files, and images.

An error in a file or row becomes a row with that error. It does not affect other files or rows.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import BadRequest, InternalError, RequestError, TooLarge
from .csv_rows import read_csv_rows
from .image_files import PROMPT_FILE, image_request
from .input_files import stat_regular_file
from .input_row import InputRow, RowDefaults

logger = logging.getLogger(__name__)
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv",)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def read_input_rows(path: Path, name: str, defaults: RowDefaults) -> Iterator[InputRow]:
    """Yields the rows of a file in order, and reads each row only when it is needed. `name` is the file's name in them.

    An image is one row. The file `prompt.txt` has no rows.
    """
    try:
        yield from _read_rows(path, name, defaults)
    except OSError as error:
        message = f"the file cannot be read: {error.strerror or error}"
        yield InputRow(name, None, BadRequest("unreadable_input", message))
    except Exception as error:
        logger.exception("%r could not be read to its end", name)
        message = f"the file could not be read to its end ({type(error).__name__}); the log says why"
        yield InputRow(name, None, InternalError("unreadable_input", message))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_table(path: Path) -> bool:
    return path.suffix.lower() in CSV_SUFFIXES


def _read_rows(path: Path, name: str, defaults: RowDefaults) -> Iterator[InputRow]:
    suffix = path.suffix.lower()
    if path.name == PROMPT_FILE:
        return
    if is_image(path):
        yield InputRow(name, 0, image_request(path, name, defaults))
        return
    stat_regular_file(path)
    if suffix in JSON_LINES_SUFFIXES:
        with path.open("rb") as file:
            for index, line in enumerate(_read_lines(file, defaults.max_bytes)):
                yield InputRow(name, index, line)
    elif is_table(path):
        yield from read_csv_rows(path, name, defaults)
    else:
        accepted = ", ".join((*JSON_LINES_SUFFIXES, *CSV_SUFFIXES, *IMAGE_SUFFIXES))
        message = f"files of this type are not read; the types are {accepted}"
        yield InputRow(name, None, BadRequest("unsupported_input", message))


def _read_lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | RequestError]:
    """Yields the lines that are not blank. Yields an error for a longer line, and never holds all of that line."""
    for line in read_raw_lines(file, max_bytes):
        if len(line) > max_bytes:
            yield TooLarge("body_too_large", f"the line has more than {max_bytes:,} bytes")
        else:
            yield line


def read_raw_lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """Yields the lines that are not blank, without white space around them. Of a longer line it yields the beginning.

    That beginning has more than `max_bytes` bytes.
    """
    while line := file.readline(max_bytes + 2):
        if len(line) > max_bytes and not line.endswith(b"\n"):
            _skip_line(file, max_bytes)
            yield line
        elif line.strip():
            yield line.strip()


def _skip_line(file: BinaryIO, max_bytes: int) -> None:
    while (rest := file.readline(max_bytes)) and not rest.endswith(b"\n"):
        pass
