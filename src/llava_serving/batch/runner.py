"""Answers the rows of many files at the same time, and returns the results in order."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..api.response import error_body
from ..errors import InternalError, RequestError, Unavailable
from ..progress import Progress
from .answer_index import AnswerKey
from .input_row import InputRow, RowDefaults
from .row_reader import is_image, is_table, read_input_rows
from .row_result import RowResult
from .saved_answers import SavedAnswers
from .table_images import TableImages

logger = logging.getLogger(__name__)
MAX_PENDING_BYTES = 512 * 2**20
PENDING_ROWS_PER_THREAD = 4


class BatchRunner:
    """Answers the rows of files.

    `answer` turns a request's body into the answer's JSON value, or raises RequestError. Up to `concurrency` threads
    call it at a time. `stop` makes those calls end soon. Answers in `saved_answers` are not computed again; rows with
    an error are tried again.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Any],
        concurrency: int,
        defaults: RowDefaults,
        saved_answers: SavedAnswers | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._answer = answer
        self._concurrency = concurrency
        self._defaults = defaults
        self._saved_answers = saved_answers
        self._table_images = TableImages(defaults.max_bytes)
        self.stop = stop

    def run(self, files: Sequence[tuple[Path, str]], tables: Sequence[Path] | None = None) -> Iterator[RowResult]:
        """Yields the result of every row, in order. `files` are paths, each with its name in the results.

        An image that a row of a CSV file names has no row of its own. `tables` are the CSV files, by default those in
        `files`.

        Raises Unavailable when the engine shuts down or its device fails. The rows that this interrupts have no
        result, and another run answers them.
        """
        pool = ThreadPoolExecutor(self._concurrency, "batch")
        try:
            yield from self._answer_files(self._without_table_images(files, tables), pool)
        except (KeyboardInterrupt, SystemExit):
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            if self._saved_answers is not None:
                self._saved_answers.close()

    def _without_table_images(
        self, files: Sequence[tuple[Path, str]], tables: Sequence[Path] | None
    ) -> list[tuple[Path, str]]:
        if not any(is_image(path) for path, _ in files):
            return list(files)
        self._table_images.add([path for path, _ in files if is_table(path)] if tables is None else tables)
        return [file for file in files if not (is_image(file[0]) and file[0] in self._table_images)]

    def _answer_files(self, files: Sequence[tuple[Path, str]], pool: ThreadPoolExecutor) -> Iterator[RowResult]:
        pending = _PendingRows(PENDING_ROWS_PER_THREAD * self._concurrency)
        with _BatchProgress(len(files)) as progress:
            for path, name in files:
                for row in read_input_rows(path, name, self._defaults):
                    while pending.is_full(row.num_bytes):
                        yield progress.count_row(pending.pop())
                    pending.append(pool.submit(self._answer_row, row), row.num_bytes)
                progress.count_file()
            while pending:
                yield progress.count_row(pending.pop())

    def _answer_row(self, row: InputRow) -> RowResult:
        try:
            if isinstance(row.request, RequestError):
                raise row.request
            return RowResult(row.file, row.index, self._get_answer(row, row.request), None)
        except Unavailable:
            raise
        except RequestError as error:
            row_error = error
        except Exception:
            logger.exception("row %s of %r failed", row.index, row.file)
            row_error = InternalError("internal_error", "the service failed on this row; its log says why")
        return RowResult(row.file, row.index, None, error_body(row_error)["error"])

    def _get_answer(self, row: InputRow, request: bytes) -> Any:
        if self._saved_answers is None:
            return self._answer(request)
        key = AnswerKey(row.file, row.index, hashlib.blake2b(request, digest_size=16).hexdigest())
        answer = self._saved_answers.get(key)
        if answer is None:
            answer = self._answer(request)
            self._saved_answers.save(key, answer)
        return answer


class _PendingRows:
    """Rows whose results have not been returned, in order.

    There are enough that the engine always finds the next row, and that one long answer does not hold up the others.
    Their bytes are limited, so that a folder of large images does not fill the memory.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: deque[tuple[Future[RowResult], int]] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def is_full(self, num_bytes: int) -> bool:
        """Returns whether a row of `num_bytes` must wait. A row that is too large by itself waits until it is alone."""
        has_no_room = len(self) >= self._max_rows or self._num_bytes + num_bytes > MAX_PENDING_BYTES
        return bool(self._rows) and has_no_room

    def append(self, result: "Future[RowResult]", num_bytes: int) -> None:
        self._rows.append((result, num_bytes))
        self._num_bytes += num_bytes

    def pop(self) -> RowResult:
        """Waits for the first row's result and returns it."""
        result, num_bytes = self._rows.popleft()
        self._num_bytes -= num_bytes
        return result.result()


class _BatchProgress(Progress):
    """Shows how many rows are done, how many files are read, and how many rows are errors."""

    def __init__(self, num_files: int) -> None:
        super().__init__("batch", " rows", log=logger.info)
        self._num_files = num_files
        self._num_files_read = self._num_errors = 0

    def count_row(self, result: RowResult) -> RowResult:
        self._num_errors += result.error is not None
        self._show(1)
        return result

    def count_file(self) -> None:
        self._num_files_read += 1
        self._show(0)

    def _show(self, num_rows: int) -> None:
        self.advance(num_rows, f"{self._num_files_read} of {self._num_files} files read, {self._num_errors} errors")
