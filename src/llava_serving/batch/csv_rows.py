"""Turns the rows of CSV files into requests."""

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import BadRequest, RequestError
from .csv_records import read_csv_records
from .image_files import encode_image
from .input_names import name_beside
from .input_row import InputRow, RowDefaults, request_body

logger = logging.getLogger(__name__)
PROMPT_COLUMN, IMAGE_COLUMN = "input_string", "image"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
URI = re.compile(r"data:|\w+://", re.IGNORECASE)


def read_csv_rows(path: Path, name: str, defaults: RowDefaults) -> Iterator[InputRow]:
    """Yields the rows below the header. Yields one error for the whole file if the header is wrong. Raises OSError."""
    # surrogateescape: a byte that is not UTF-8 becomes an error of its own row, not of the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first_line = file.readline(defaults.max_bytes)
        file.seek(0)
        records = read_csv_records(file, defaults.max_bytes)
        columns = column_names(next(records, []))
        if not is_table_header(columns):
            yield InputRow(name, None, BadRequest("invalid_table", header_error(first_line)))
            return
        if ignored := [column for column in columns if column not in (PROMPT_COLUMN, IMAGE_COLUMN)]:
            logger.warning("%r: columns %s are not used", name, ", ".join(map(repr, ignored)))
        for index, record in enumerate(records):
            try:
                yield InputRow(name, index, _request(_cells(record, columns), path, name, defaults))
            except RequestError as error:
                yield InputRow(name, index, error)


def column_names(header: list[str] | csv.Error) -> list[str]:
    return [] if isinstance(header, csv.Error) else [column.strip() for column in header]


def is_table_header(columns: list[str]) -> bool:
    return PROMPT_COLUMN in columns and len(set(columns)) == len(columns)


def header_error(first_line: str) -> str:
    """Returns what is wrong with the header, and the probable cause: another separator, or another encoding."""
    message = f"the first line must name the column {PROMPT_COLUMN}, optionally {IMAGE_COLUMN}, and no column twice"
    for separator, name in SEPARATORS.items():
        if PROMPT_COLUMN in (column.strip(' "\r\n') for column in first_line.split(separator)):
            return f"{message}; this file separates its columns by {name}: save it with commas"
    if "\0" in first_line:
        return f"{message}; this file is in UTF-16: save it as UTF-8"
    return message


def _cells(record: list[str] | csv.Error, columns: list[str]) -> dict[str, str]:
    """Returns the record's cells by column. Raises BadRequest."""
    if isinstance(record, csv.Error):
        raise BadRequest("invalid_table", f"the row is not CSV: {record}")
    if len(record) != len(columns):
        raise BadRequest("invalid_table", f"the row has {len(record)} cells for {len(columns)} columns")
    return dict(zip(columns, record, strict=True))


def _request(cells: dict[str, str], path: Path, name: str, defaults: RowDefaults) -> bytes:
    """Returns the row's request. Raises RequestError."""
    prompt, image = cells[PROMPT_COLUMN], cells.get(IMAGE_COLUMN, "").strip()
    if not (prompt + image).isprintable():
        _check_utf8(prompt + image)
    if not prompt.strip():
        raise BadRequest("invalid_table", f"the row's {PROMPT_COLUMN} is empty")
    if is_file_name(image):
        image_name = name_beside(name, image)
        if (image_path := path_in_folder(path.parent, image)) is None:
            raise BadRequest("invalid_image", f"{image_name} is not in the folder of the CSV {name}", IMAGE_COLUMN)
        image = encode_image(image_path, image_name, defaults.max_bytes)
    return request_body(prompt, image or None, defaults.parameters)


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("invalid_table", "the row is not UTF-8") from None


def is_file_name(image: str) -> bool:
    """Returns whether a cell names a file: base64 has no dots."""
    return "." in image and not URI.match(image)


def path_in_folder(folder: Path, image: str) -> Path | None:
    """Returns the path of an image that a CSV file in `folder` names.

    Returns None unless it is in this folder or below: a CSV must not read other files of the machine.
    """
    try:
        path = (folder / image).resolve()
        return path if path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, or links in a circle
        return None
