"""Answers on the disk, written as they come: a run that continues after a kill does not compute them again."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)
SAVED_ANSWERS_FOLDER = "kept"  # in the output folder
# A mounted storage uploads a file when it is closed, so the first answer after this time starts a new file.
FILE_SECONDS = 30.0
RowKey = tuple[str, int | None]  # the file's name and the row's index in it


class SavedAnswers:
    """A folder of JSON lines files. Each process writes its own files, and reads the others' when it starts.

    Files are only appended to: a mounted output folder cannot rename, and processes on several machines share it. If
    the folder cannot be written, a warning is logged once and the run continues without it. Methods are thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[tuple[RowKey, str], Any] = {}
        self._file: TextIO | None = None
        self._file_opened = 0.0
        self._is_writable = True
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for line in _read_lines(folder):
                self._answers[(line["file"], line["row"]), line["request"]] = line["answer"]
        except OSError as error:
            self._stop_writing(error)

    def get(self, row: RowKey, request_digest: str) -> Any:
        """Returns the row's answer, None if none is saved for a request with this digest."""
        return self._answers.get((row, request_digest))

    def save(self, row: RowKey, request_digest: str, answer: Any) -> None:
        line = json.dumps({"file": row[0], "row": row[1], "request": request_digest, "answer": answer})
        with self._lock:
            self._answers[row, request_digest] = answer
            try:
                if self._is_writable:
                    self._append(line)
            except OSError as error:
                self._stop_writing(error)

    def close(self) -> None:
        """Closes the current file. The next `save` starts a new one."""
        with self._lock:
            try:
                self._close_file()
            except OSError as error:
                self._stop_writing(error)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, line: str) -> None:
        now = time.monotonic()
        if now - self._file_opened > FILE_SECONDS:
            self._close_file()
        if self._file is None:
            self._file = (self._folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
            self._file_opened = now
        self._file.write(line + "\n")
        self._file.flush()

    def _stop_writing(self, error: OSError) -> None:
        if self._is_writable:
            logger.warning("answers are not saved, so another run starts from the beginning: %s", error)
        self._is_writable = False


def _read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines. A killed process may have cut the last line of a file."""
    for path in folder.glob("*.jsonl"):
        for text in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"file", "row", "request", "answer"} <= line.keys():
                yield line
