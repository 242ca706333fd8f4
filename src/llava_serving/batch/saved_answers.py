"""Answers on the disk, written as they come: a run that continues after a kill does not compute them again."""

import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .answer_index import AnswerIndex, AnswerKey, Location

logger = logging.getLogger(__name__)
SAVED_ANSWERS_FOLDER = "kept"  # in the output folder
# A mounted storage uploads a file when it is closed, so the first answer after this time starts a new file.
FILE_SECONDS = 30.0


class SavedAnswers:
    """A folder of JSON lines files. Each process writes its own files, and indexes the others' when it starts.

    Files are only appended to: a mounted output folder cannot rename, and processes on several machines share it. If
    the folder or the index cannot be written, a warning is logged once and the run continues without saving. The
    memory does not grow with the answers: AnswerIndex knows where they are, and `get` reads them again. Methods are
    thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []  # by file number
        self._file: BinaryIO | None = None  # the last of `_paths`, if this process writes it
        self._file_opened = 0.0
        self._reader: BinaryIO | None = None  # neighbours are in one file, so the last one read stays open
        self._is_writable = True
        self._lock = threading.Lock()
        self._index = AnswerIndex()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.jsonl"):
                self._paths.append(path)
                self._index.add(_read_index(path, len(self._paths) - 1))
        except (OSError, sqlite3.Error) as error:
            self._stop_writing(error)

    def get(self, key: AnswerKey) -> Any:
        """Returns the answer, None if none is saved for this request or if its file cannot be read any more."""
        with self._lock:
            try:
                location = self._index.find(key)
                text = b"" if location is None else self._read_line(location)
            except (OSError, sqlite3.Error):
                return None
        line = _parse(text)
        return line["answer"] if line is not None and _key(line) == key else None

    def save(self, key: AnswerKey, answer: Any) -> None:
        line = json.dumps({**key._asdict(), "answer": answer}).encode()
        with self._lock:
            try:
                if self._is_writable:
                    self._index.add([(key, self._append(line))])
            except (OSError, sqlite3.Error) as error:
                self._stop_writing(error)

    def close(self) -> None:
        """Closes the current files. The next `save` starts a new one."""
        with self._lock:
            try:
                self._close_reader()
                self._close_file()
            except OSError as error:
                self._stop_writing(error)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _append(self, line: bytes) -> Location:
        """Writes a line, and returns its location."""
        now = time.monotonic()
        if now - self._file_opened > FILE_SECONDS:
            self._close_file()
        if self._file is None:
            path = self._folder / f"{uuid.uuid4().hex}.jsonl"
            self._file = path.open("wb")
            self._file_opened = now
            self._paths.append(path)
        location = Location(len(self._paths) - 1, self._file.tell())
        self._file.write(line + b"\n")
        self._file.flush()
        return location

    def _read_line(self, location: Location) -> bytes:
        path = self._paths[location.file_number]
        if self._reader is None or self._reader.name != str(path):
            self._close_reader()
            self._reader = path.open("rb")
        self._reader.seek(location.offset)
        return self._reader.readline()

    def _stop_writing(self, error: OSError | sqlite3.Error) -> None:
        if self._is_writable:
            logger.warning("answers are not saved, so another run starts from the beginning: %s", error)
        self._is_writable = False


def _read_index(path: Path, file_number: int) -> Iterator[tuple[AnswerKey, Location]]:
    """Yields the key and the location of each complete line. Raises OSError."""
    offset = 0
    with path.open("rb") as file:
        for text in file:
            line = _parse(text)
            if line is not None:
                yield _key(line), Location(file_number, offset)
            offset += len(text)


def _parse(text: bytes) -> dict[str, Any] | None:
    """Returns the object of a line, None if the line is cut: a killed process may have cut the last line of a file."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    is_complete = isinstance(line, dict) and {*AnswerKey._fields, "answer"} <= line.keys()
    return line if is_complete else None


def _key(line: dict[str, Any]) -> AnswerKey:
    return AnswerKey(*(line[name] for name in AnswerKey._fields))
