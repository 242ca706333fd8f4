"""The results of a run on this machine: every row as JSON and as CSV."""

import contextlib
import csv
import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .run_files import ANSWERS, PREDICTIONS

if TYPE_CHECKING:
    from .run import RowResult


class Results:
    """The output's files, which are this process's alone as long as it lives. Raises OSError, also where another has
    them."""

    def __init__(self, output: Path) -> None:
        self._answers = (output / ANSWERS).open("a", encoding="utf-8")
        self._predictions = (output / PREDICTIONS).open("a", encoding="utf-8", newline="")
        try:
            fcntl.flock(self._answers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another run writes into {output}") from None
        except OSError:  # a file system without locks
            pass

    def write(self, rows: Iterable["RowResult"]) -> tuple[int, int]:
        """In the place of what is there: how many rows there are, and how many of them are errors. Raises OSError."""
        count = errors = 0
        with contextlib.closing(self._answers) as lines, contextlib.closing(self._predictions) as table:
            for file in (lines, table):
                file.truncate(0)
            records = csv.writer(table, lineterminator="\n")
            for answered in rows:
                lines.write(json.dumps(asdict(answered), ensure_ascii=False) + "\n")
                records.writerow(answered.columns())
                count += 1
                errors += answered.error is not None
        return count, errors
