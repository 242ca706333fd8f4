"""The results of several runs and machines as one table: sorted, each row once, and compared with the input."""

import csv
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from ..errors import StartupError
from .result_files import PREDICTIONS_FILE, PREDICTIONS_FOLDER
from .row_result import COLUMNS

CACHE_KIB = 64 * 1024
INSERT_ROWS = 10_000
MAX_RECORD_BYTES = 256 * 2**20
# The row of an error that concerns a whole file. It stands after the file's rows, which it may have cut off.
WHOLE_FILE = 2**62


class Gap(NamedTuple):
    """Rows `first` to `last` of an input file that have no result. Both are None if the file has no result at all."""

    file: str
    first: int | None
    last: int | None


class CollectedResults:
    """Result files, with an index of their rows that is sorted by file and row.

    The index is an SQLite database in the folder SQLITE_TMPDIR or TMPDIR, else in /var/tmp or /tmp, about 100 bytes for
    each row. The results stay in their files, so that the memory does not grow with the rows. Use as a context manager.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_doubles = self.num_errors = self.num_cut = 0
        self._paths: Sequence[Path] = ()
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE results (file TEXT, row INTEGER, is_error INTEGER, source INTEGER, offset INTEGER,"
            " length INTEGER, PRIMARY KEY (file, row)) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, paths: Sequence[Path]) -> None:
        """Adds the result files, once. Keeps the first answer of each row, and an error only if it has no answer.

        Skips a last line that a killed process cut. Raises OSError, StartupError for a file that holds other lines, and
        sqlite3.Error.
        """
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        num_added = 0
        self._paths = paths
        for number, path in enumerate(paths):
            with path.open("rb", 2**20) as file:
                records = self._records(file, path, number)
                while batch := list(islice(records, INSERT_ROWS)):
                    num_added += len(batch)
                    self._database.executemany(
                        "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET is_error = 0,"
                        " source = excluded.source, offset = excluded.offset, length = excluded.length"
                        " WHERE is_error > excluded.is_error",
                        batch,
                    )
        counts = self._database.execute("SELECT count(*), coalesce(sum(is_error), 0) FROM results").fetchone()
        self.num_rows, self.num_errors = counts
        self.num_doubles = num_added - self.num_rows

    def _records(self, file: BinaryIO, path: Path, number: int) -> Iterator[tuple[str, int, bool, int, int, int]]:
        offset = 0
        for text in _record_texts(file, path):
            if not text.endswith(b"\n"):
                self.num_cut += 1
                return
            file_name, row, is_error = _parse(text, path, offset)
            yield file_name, row, is_error, number, offset, len(text)
            offset += len(text)

    def write(self, output: BinaryIO) -> None:
        """Writes the lines, sorted by file and row. Raises OSError."""
        lines = self._database.execute("SELECT source, offset, length FROM results ORDER BY file, row")
        sources = _Sources(self._paths)
        try:
            for source, offset, length in lines:
                output.write(sources.read(source, offset, length))
        finally:
            sources.close()

    def gaps(self, file: str, num_rows: int | None) -> Iterator[Gap]:
        """Yields the rows of an input file without a result.

        `num_rows` is None for a file that is no file of rows and has one error.
        """
        found = self._database.execute("SELECT row FROM results WHERE file = ? ORDER BY row", (file,))
        if num_rows is None:
            if found.fetchone() is None:
                yield Gap(file, None, None)
            return
        expected = 0
        for (row,) in found:
            row = min(row, num_rows)
            if row > expected:
                yield Gap(file, expected, row - 1)
            expected = max(expected, row + 1)
        if expected < num_rows:
            yield Gap(file, expected, num_rows - 1)


class _Sources:
    """Result files, of which the one that was read last stays open: neighbours are usually in one file."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._number, self._position = -1, 0
        self._file: BinaryIO | None = None

    def read(self, number: int, offset: int, length: int) -> bytes:
        if self._file is None or number != self._number:
            self.close()
            self._file, self._number, self._position = self._paths[number].open("rb", 2**18), number, 0
        if offset != self._position:
            self._file.seek(offset)
        self._position = offset + length
        return self._file.read(length)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def find_result_files(outputs: Sequence[Path]) -> list[Path]:
    """Returns the result files in these folders and below, and the outputs that are files. Raises OSError.

    Result files are `predictions.csv` and the CSV files in a folder `predictions`.
    """
    files: list[Path] = []
    for output in outputs:
        if not output.exists():
            raise FileNotFoundError(f"{output} does not exist")
        found = sorted(_result_files_below(output)) if output.is_dir() else [output]
        if not found:
            raise FileNotFoundError(f"{output} has no {PREDICTIONS_FILE} and no CSV file in {PREDICTIONS_FOLDER}/")
        files += found
    return list(dict.fromkeys(path.absolute() for path in files))


def _result_files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        is_predictions = os.path.basename(parent) == PREDICTIONS_FOLDER
        for name in names:
            if name == PREDICTIONS_FILE or (is_predictions and name.endswith(".csv")):
                yield Path(parent, name)


def _record_texts(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yields the bytes of each CSV record: lines up to an even number of quotation marks. Raises StartupError."""
    lines: list[bytes] = []
    num_marks = num_bytes = 0
    for line in file:
        num_marks += line.count(b'"')
        if not lines and num_marks % 2 == 0:
            yield line
            num_marks = 0
            continue
        lines.append(line)
        num_bytes += len(line)
        if num_marks % 2 == 0:
            yield b"".join(lines)
            lines, num_marks, num_bytes = [], 0, 0
        elif num_bytes > MAX_RECORD_BYTES:
            raise StartupError(f"{path} is no result file: a quotation mark is not closed")
    if lines:
        yield b"".join(lines).rstrip(b"\n")


def _parse(text: bytes, path: Path, offset: int) -> tuple[str, int, bool]:
    """Returns file, row and whether the result is an error. Raises StartupError if the line is no result."""
    try:
        start = text.split(b",", 2)
        if (
            text.endswith(b",\n") and len(start) == 3 and not start[0].startswith(b'"')
        ):  # nearly every line, in less time
            return start[0].decode(), int(start[1]) if start[1] else WHOLE_FILE, False
        file, row, _, error = next(csv.reader([text.decode()]))
        return file, int(row) if row else WHOLE_FILE, bool(error)
    except (ValueError, csv.Error, StopIteration):
        columns = ", ".join(COLUMNS)
        raise StartupError(f"{path} is no result file: the line at byte {offset} is not {columns}") from None
