"""Where each saved answer is: its file and the position of its line. The index is on the disk."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

# SQLite keeps this much of the index in memory.
CACHE_KIB = 64 * 1024


class AnswerKey(NamedTuple):
    """A request: the name of its file, its row there, and the digest of its body."""

    file: str
    row: int | None
    request: str

    def digest(self) -> bytes:
        """Returns 16 bytes. Two keys with the same digest are so unlikely that a reader only has to check for them."""
        return hashlib.blake2b(json.dumps(self).encode(), digest_size=16).digest()


class Location(NamedTuple):
    """A line: the number of its file, and the position of its first byte."""

    file_number: int
    offset: int


class AnswerIndex:
    """The locations of any number of answers, in at most CACHE_KIB of memory and about 40 bytes of disk each.

    It is an SQLite database without a name, which SQLite deletes when it opens it: the database ends with the process,
    however the process ends. It is in the folder SQLITE_TMPDIR or TMPDIR, else in /var/tmp or /tmp. Methods raise
    sqlite3.Error, for example if that disk is full. Only one thread at a time may call them.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = OFF")  # nothing is ever rolled back
        self._database.execute(
            "CREATE TABLE locations (digest BLOB PRIMARY KEY, file_number INTEGER, offset INTEGER) WITHOUT ROWID"
        )
        # One transaction without an end: at each commit SQLite would walk through all changed pages in the memory.
        self._database.execute("BEGIN")

    def add(self, answers: Iterable[tuple[AnswerKey, Location]]) -> None:
        """Adds answers. A later answer of the same request replaces an earlier one."""
        self._database.executemany(
            "INSERT OR REPLACE INTO locations VALUES (?, ?, ?)",
            ((key.digest(), *location) for key, location in answers),
        )

    def find(self, key: AnswerKey) -> Location | None:
        found = self._database.execute(
            "SELECT file_number, offset FROM locations WHERE digest = ?", (key.digest(),)
        ).fetchone()
        return None if found is None else Location(*found)
