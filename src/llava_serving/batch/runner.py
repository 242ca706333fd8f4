"""Many files through one engine: rows of all of them are in it at the same time, and come out in order."""

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api.response import error_body
from ..client.answer_texts import texts
from ..errors import InternalError, RequestError, Unavailable
from .row_reader import Defaults, Row, rows
from .saved_answers import Place, SavedAnswers

logger = logging.getLogger(__name__)
LOG_SECONDS = 10.0
MOST_BYTES = 512 * 2**20  # of requests that wait for the engine
COLUMNS = ("file", "row", "prediction", "error")


@dataclass(frozen=True)
class RowResult:
    """A row that is done: `answer` is the body in the request's own form, None where `error` says why."""

    file: str
    row: int | None
    answer: Any
    error: dict[str, Any] | None

    def columns(self) -> tuple[str, int | None, str | None, str | None]:
        """As COLUMNS: `prediction` is the text where there is one, the answer as JSON where there are several.

        Carriage returns are line feeds in it: CSV writers, Azure's too, leave them bare, and readers end the row there.
        """
        error = None if self.error is None else _cell(f"{self.error['code']}: {self.error['message']}")
        return _cell(self.file), self.row, None if self.answer is None else _cell(_prediction(self.answer)), error


class Batch:
    """Answers files. `answer` turns the bytes of a request into the answer's JSON value, raises RequestError, and is
    called from `concurrency` threads at a time; after `stop` those calls end soon.

    Answers that are in `kept` already are not computed again; what is wrong is looked at anew.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Any],
        concurrency: int,
        defaults: Defaults,
        kept: SavedAnswers | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._answer = answer
        self._concurrency = concurrency
        self._defaults = defaults
        self._kept = kept
        self.stop = stop

    def run(self, files: Sequence[tuple[Path, str]]) -> Iterator[RowResult]:
        """Every row of the files, each given with its name, in order.

        Raises Unavailable when the engine is shut down or its device fails: the rows that it took along are not
        refused, and another run answers them.
        """
        progress = _Progress(len(files))
        window: deque[tuple[Future[RowResult], int]] = deque()
        pool, held = ThreadPoolExecutor(self._concurrency, "batch"), 0
        try:
            for path, name in files:
                for row in rows(path, name, self._defaults):
                    while window and self._is_full(len(window), held + row.num_bytes):
                        future, num_bytes = window.popleft()
                        held -= num_bytes
                        yield progress.row(future.result())
                    held += row.num_bytes
                    window.append((pool.submit(self._answered, row), row.num_bytes))
                progress.file()
            for future, _ in window:
                yield progress.row(future.result())
        except (KeyboardInterrupt, SystemExit):
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            if self._kept is not None:
                self._kept.close()
        progress.tell()

    def _is_full(self, rows: int, num_bytes: int) -> bool:
        """Enough that rows are ready when the engine has room, and that one long answer does not hold up all others;
        not so much that a folder of big pictures fills the memory."""
        return rows >= 4 * self._concurrency or num_bytes > MOST_BYTES

    def _answered(self, row: Row) -> RowResult:
        try:
            if isinstance(row.request, RequestError):
                raise row.request
            return RowResult(row.file, row.number, self._ask((row.file, row.number), row.request), None)
        except Unavailable:
            raise
        except RequestError as error:
            refused = error
        except Exception:
            logger.exception("row %s of %s failed", row.number, row.file)
            refused = InternalError("internal_error", "the service failed on this row; its log says why")
        return RowResult(row.file, row.number, None, error_body(refused)["error"])

    def _ask(self, place: Place, request: bytes) -> Any:
        if self._kept is None:
            return self._answer(request)
        digest = hashlib.blake2b(request, digest_size=16).hexdigest()
        answer = self._kept.find(place, digest)
        if answer is None:
            answer = self._answer(request)
            self._kept.write(place, digest, answer)
        return answer


def _cell(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _prediction(answer: Any) -> str:
    told = [text for of_row in texts(answer) for text in of_row]
    return told[0] if len(told) == 1 else json.dumps(answer, ensure_ascii=False)


class _Progress:
    """A line in the log now and then."""

    def __init__(self, files: int) -> None:
        self._files, self._read = files, 0
        self._rows, self._errors = 0, 0
        self._began = self._told = time.monotonic()

    def file(self) -> None:
        self._read += 1

    def row(self, answered: RowResult) -> RowResult:
        self._rows += 1
        self._errors += answered.error is not None
        if time.monotonic() - self._told >= LOG_SECONDS:
            self.tell()
        return answered

    def tell(self) -> None:
        self._told = time.monotonic()
        seconds = max(self._told - self._began, 1e-3)
        logger.info(
            "%d of %d files read, %d rows done, %d of them errors, %.1f rows/s",
            self._read, self._files, self._rows, self._errors, self._rows / seconds,
        )  # fmt: skip
