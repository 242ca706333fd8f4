"""Answers on the disk as they come: what a run that goes on after a kill need not do again."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)
Place = tuple[str, int | None]  # a file's name and the number of a row in it
# A mounted storage uploads a file when it is closed, so the first answer after this many seconds begins another.
FILE_SECONDS = 30.0


class SavedAnswers:
    """A folder of JSON lines: each process writes files of its own and reads what others left before it began.

    Files are only ever written on: a mounted output cannot rename, and processes on several machines share it. Where
    nothing can be written the log says so, once, and the run goes on without. For any number of threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[tuple[Place, str], Any] = {}
        self._file: TextIO | None = None
        self._opened = 0.0
        self._works = True
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for line in _lines(folder):
                self._answers[(line["file"], line["row"]), line["request"]] = line["answer"]
        except OSError as error:
            self._give_up(error)

    def find(self, place: Place, request: str) -> Any:
        """The answer of that row, if there is one to the same request, told by its digest; else None."""
        return self._answers.get((place, request))

    def write(self, place: Place, request: str, answer: Any) -> None:
        line = json.dumps({"file": place[0], "row": place[1], "request": request, "answer": answer})
        with self._lock:
            self._answers[place, request] = answer
            try:
                if self._works:
                    self._append(line)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """The file that is open; another is begun if there is more to write."""
        with self._lock:
            try:
                self._close()
            except OSError as error:
                self._give_up(error)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, line: str) -> None:
        now = time.monotonic()
        if now - self._opened > FILE_SECONDS:
            self._close()
        if self._file is None:
            self._file, self._opened = (self._folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8"), now
        self._file.write(line + "\n")
        self._file.flush()

    def _give_up(self, error: OSError) -> None:
        if self._works:
            logger.warning("answers are not kept, and another run begins anew: %s", error)
        self._works = False


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines: the last of a file may have been cut by what ended its process."""
    for path in folder.glob("*.jsonl"):
        for text in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"file", "row", "request", "answer"} <= line.keys():
                yield line
