"""A file of JSON lines that a run appends to, and that the next run continues after any end of this one."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import StartupError
from ...file_lock import lock_file


class Journal:
    """JSON objects, one per line. `rows` holds those that the file had when it was opened.

    A killed run may have cut its last line: the line is removed. Lines that are no JSON objects are passed over. One
    process at a time has the file open. Methods are thread-safe. Raises StartupError if another process has the file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        if not lock_file(self._file):
            self._file.close()
            raise StartupError(f"another run writes {path}: wait for it, or choose another --output")
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(b"\n") + 1
        self._file.truncate(complete)
        self._file.seek(0, os.SEEK_END)
        self.rows = [row for line in content[:complete].split(b"\n") if (row := _parse(line)) is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, which survives the end of this process from then on. Raises OSError."""
        line = json.dumps(row).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


class KeptRows:
    """What a file of rows holds by key, open during its `with` block. Raises StartupError as Journal does."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
