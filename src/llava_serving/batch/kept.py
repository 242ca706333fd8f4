"""Answers on the disk as they come: what a run that goes on after a kill need not do again."""

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Place = tuple[str, int | None]  # a file's name and the number of a row in it


class Kept:
    """A folder of JSON lines: each process writes a file of its own and reads what others left before it began.

    Files are only ever written on: a mounted output cannot rename, and processes on several machines share it. For any
    number of threads.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._earlier = {
            (line["file"], line["row"]): (line["request"], line["answer"])
            for path in folder.glob("*.jsonl")
            for line in _lines(path)
        }
        self._file = (folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def find(self, place: Place, request: str) -> Any:
        """The answer of that row, if it was to the same request, told by its digest; else None."""
        earlier, answer = self._earlier.get(place, (None, None))
        return answer if earlier == request else None

    def write(self, place: Place, request: str, answer: Any) -> None:
        line = {"file": place[0], "row": place[1], "request": request, "answer": answer}
        with self._lock:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines: the last may have been cut by what ended its process."""
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"file", "row", "request", "answer"} <= line.keys():
            yield line
