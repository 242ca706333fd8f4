"""How many rows each input file of a run must have in its results."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .csv_records import read_csv_records
from .csv_rows import column_names, is_table_header
from .image_files import PROMPT_FILE
from .input_files import stat_regular_file
from .row_reader import JSON_LINES_SUFFIXES, is_image, is_table, read_raw_lines
from .table_images import TableImages


def count_rows(files: Sequence[tuple[Path, str]], max_bytes: int) -> Iterator[tuple[str, int | None]]:
    """Yields the name of each input file and the number of its rows.

    The number is None for a file whose one result is an error: a file of another type, a table without its header, or a
    file that cannot be read. Reads no images.
    """
    images = TableImages(max_bytes)
    if any(is_image(path) for path, _ in files):
        images.add([path for path, _ in files if is_table(path)])
    for path, name in files:
        if path.name != PROMPT_FILE and not (is_image(path) and path in images):
            yield name, _num_rows(path, max_bytes)


def _num_rows(path: Path, max_bytes: int) -> int | None:
    if is_image(path):
        return 1
    try:
        stat_regular_file(path)
        if path.suffix.lower() in JSON_LINES_SUFFIXES:
            return _num_lines(path, max_bytes)
        return _num_records(path, max_bytes) if is_table(path) else None
    except OSError:
        return None


def _num_lines(path: Path, max_bytes: int) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in read_raw_lines(file, max_bytes))


def _num_records(path: Path, max_bytes: int) -> int | None:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = read_csv_records(file, max_bytes)
        has_header = is_table_header(column_names(next(records, [])))
        return sum(1 for _ in records) if has_header else None
