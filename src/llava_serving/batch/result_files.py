"""The result files of a run on this machine: every row as JSON and as CSV."""

import contextlib
import csv
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ..file_lock import lock_file
from .row_result import RowResult

ANSWERS_FILE, PREDICTIONS_FILE = "answers.jsonl", "predictions.csv"


class ResultFiles:
    """The result files in the output folder, locked until `write` returns or the process ends.

    Raises OSError if the files cannot be opened or if another process has locked them.
    """

    def __init__(self, output: Path) -> None:
        self._answers = (output / ANSWERS_FILE).open("a", encoding="utf-8")
        self._predictions = (output / PREDICTIONS_FILE).open("a", encoding="utf-8", newline="")
        if not lock_file(self._answers):
            raise BlockingIOError(f"another run writes into {output}")

    def write(self, results: Iterable[RowResult]) -> tuple[int, int]:
        """Replaces the files' content. Returns the number of rows and the number of errors among them. Raises OSError.

        Closes the files.
        """
        num_rows = num_errors = 0
        with contextlib.closing(self._answers) as answers, contextlib.closing(self._predictions) as predictions:
            for file in (answers, predictions):
                file.truncate(0)
            table = csv.writer(predictions, lineterminator="\n")
            for result in results:
                answers.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
                table.writerow(result.columns())
                num_rows += 1
                num_errors += result.error is not None
        return num_rows, num_errors
