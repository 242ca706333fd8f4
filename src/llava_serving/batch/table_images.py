"""The image files that CSV files name. Their rows answer them, so they have no rows of their own."""

import csv
import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from .csv_records import read_csv_records
from .csv_rows import IMAGE_COLUMN, column_names, is_file_name, is_table_header

logger = logging.getLogger(__name__)
CACHE_KIB = 64 * 1024


class TableImages:
    """The paths of any number of images, on the disk: an SQLite database without a name, as AnswerIndex.

    Methods raise sqlite3.Error, for example if that disk is full.
    """

    def __init__(self, max_characters: int) -> None:
        """`max_characters` limits a record of a CSV file."""
        self._max_characters = max_characters
        self._tables: set[Path] = set()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE images (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, tables: Iterable[Path]) -> None:
        """Reads the CSV files that were not read before. Skips files that cannot be read: their own rows say so."""
        for path in tables:
            if path in self._tables:
                continue
            self._tables.add(path)
            try:
                paths = _image_paths(path, self._max_characters)
                self._database.executemany("INSERT OR IGNORE INTO images VALUES (?)", ((_digest(p),) for p in paths))
            except OSError as error:
                logger.warning("%r cannot be searched for images: %s", str(path), error)

    def __contains__(self, image: Path) -> bool:
        path = _real_path(str(image.parent), image.name)
        return self._database.execute("SELECT 1 FROM images WHERE digest = ?", (_digest(path),)).fetchone() is not None


def _image_paths(table: Path, max_characters: int) -> Iterator[str]:
    """Yields the path of each image that a row names. Raises OSError."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = read_csv_records(file, max_characters)
        columns = column_names(next(records, []))
        if not is_table_header(columns) or IMAGE_COLUMN not in columns:
            return
        index = columns.index(IMAGE_COLUMN)
        for record in records:
            if isinstance(record, csv.Error) or len(record) != len(columns):
                continue
            image = record[index].strip()
            if is_file_name(image) and "\0" not in image:
                path = Path(_real_path(*os.path.split(os.path.join(table.parent, image))))
                if path.is_relative_to(_real_folder(str(table.parent))):  # others are errors of their rows
                    yield str(path)


def _real_path(folder: str, name: str) -> str:
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=10_000)
def _real_folder(folder: str) -> str:
    """Returns the folder without links. The file itself may be a link: two names of one file are two inputs."""
    return os.path.realpath(folder)


def _digest(path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(path), digest_size=16).digest()
