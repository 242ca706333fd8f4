"""The result files: every row as JSON and as CSV on this machine, a CSV file for each mini-batch on Azure."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..file_lock import lock_file
from .row_result import RowResult

ANSWERS_FILE, PREDICTIONS_FILE = "answers.jsonl", "predictions.csv"
PREDICTIONS_FOLDER = "predictions"  # of a batch endpoint's job: one CSV file for each mini-batch


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


def write_mini_batch(results: Iterable[RowResult], names: Sequence[str], output: Path) -> None:
    """Writes the results of the mini-batch of these files into a CSV file of its own. Raises OSError.

    A retry replaces the file, so that no row comes twice. The file is written elsewhere and copied when it is complete:
    a mounted output folder cannot rename. Without rows there is no file.
    """
    with tempfile.TemporaryFile("w+b") as complete:
        text = io.TextIOWrapper(complete, encoding="utf-8", newline="", write_through=True)
        csv.writer(text, lineterminator="\n").writerows(result.columns() for result in results)
        if not complete.tell():
            return
        complete.seek(0)
        digest = hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest()
        path = output / PREDICTIONS_FOLDER / f"{digest}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(complete, file)
