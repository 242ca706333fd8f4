"""Splits big files of rows into parts, which several machines can answer at the same time."""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ..errors import StartupError
from .csv_records import read_raw_csv_records
from .csv_rows import IMAGE_COLUMN, column_names, header_error, is_file_name, is_table_header, path_in_folder
from .row_reader import JSON_LINES_SUFFIXES, is_table, read_raw_lines

PART_DIGITS = 6
COPY_BYTES = 2**20


def split_file(path: Path, output: Path, rows_per_part: int, max_bytes: int) -> int:
    """Writes the rows of a JSON lines or CSV file into parts in `output`, and returns the number of parts.

    The parts of `a.csv` are `a-000000.csv`, `a-000001.csv` and so on: row i of part p is row p * `rows_per_part` + i.
    Rows keep their bytes, and each CSV part has the header. Image files that a CSV names are linked into `output` under
    the same relative path, or copied if they cannot be linked. At most about `max_bytes`, the limit of a row, is in
    memory. A row above the limit is cut, and is the same error in its part.

    Raises OSError, also if a part exists, and StartupError if the file has another type or no header.
    """
    if is_table(path):
        return _split_table(path, output, rows_per_part, max_bytes)
    if path.suffix.lower() not in JSON_LINES_SUFFIXES:
        raise StartupError(f"{path} is no file of rows: only .csv, {' and '.join(JSON_LINES_SUFFIXES)} can be split")
    with path.open("rb") as file:
        rows = (line + b"\n" for line in read_raw_lines(file, max_bytes))
        return _write_parts(path, output, b"", rows, rows_per_part)


def _split_table(path: Path, output: Path, rows_per_part: int, max_bytes: int) -> int:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first_line = file.readline(max_bytes)
        file.seek(0)
        records = read_raw_csv_records(file, max_bytes)
        header_text, header = next(records, ("", []))
        columns = column_names(header)
        if not is_table_header(columns):
            raise StartupError(f"{path}: {header_error(first_line)}")
        rows = _table_rows(records, columns, path.parent, output)
        return _write_parts(path, output, _line(header_text), rows, rows_per_part)


def _table_rows(
    records: Iterable[tuple[str, list[str] | csv.Error]], columns: list[str], folder: Path, output: Path
) -> Iterator[bytes]:
    """Yields the bytes of each record, and links the image that it names."""
    index = columns.index(IMAGE_COLUMN) if IMAGE_COLUMN in columns else None
    for text, record in records:
        if index is not None and not isinstance(record, csv.Error) and len(record) == len(columns):
            _link_image(folder, record[index].strip(), output)
        yield _line(text)


def _line(text: str) -> bytes:
    """Returns the bytes of a record with its line break, which the last line of a file and a cut line may lack."""
    return (text if text.endswith(("\n", "\r")) else text + "\n").encode("utf-8", "surrogateescape")


def _link_image(folder: Path, image: str, output: Path) -> None:
    """Links or copies an image below `output`. Leaves out an image that its row cannot read either."""
    if not is_file_name(image) or (source := path_in_folder(folder, image)) is None or not source.is_file():
        return
    # Not `source`: a name with links must stay the name by which the row finds the image.
    target = output / os.path.relpath(os.path.abspath(folder / image), os.path.abspath(folder))
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _write_parts(path: Path, output: Path, header: bytes, rows: Iterator[bytes], rows_per_part: int) -> int:
    output.mkdir(parents=True, exist_ok=True)
    num_parts = 0
    for first in rows:
        part = output / f"{path.stem}-{num_parts:0{PART_DIGITS}}{path.suffix}"
        with part.open("xb", COPY_BYTES) as file:
            file.write(header + first)
            file.writelines(islice(rows, rows_per_part - 1))
        num_parts += 1
    return num_parts
