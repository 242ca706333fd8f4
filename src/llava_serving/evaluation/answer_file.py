"""Answers on the disk, one JSON object per line, written as they come: a run that was killed continues with them.

The lines are in the format of LLaVA's own answer files (LLaVA@15f31eb llava/eval/model_vqa.py).
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import StartupError
from ..file_lock import lock_file


class AnswerFile:
    """The answers of one output folder, by key. A key is a digest of all that an answer depends on.

    One process at a time has the file open. Raises StartupError if another one has it.
    """

    def __init__(self, path: Path) -> None:
        self._texts: dict[str, str] = {}
        self._file = path.open("a+b")
        if not lock_file(self._file):
            self._file.close()
            raise StartupError(f"another run writes {path}: wait for it, or choose another --output")
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(b"\n") + 1  # a killed run may have cut its last line
        self._file.truncate(complete)
        self._file.seek(0, os.SEEK_END)
        for line in content[:complete].splitlines():
            row = _parse(line)
            if row is not None:
                self._texts[row["metadata"]["key"]] = row["text"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> str | None:
        """Returns the text of the answer with this key, or None if there is none."""
        return self._texts.get(key)

    def add(self, key: str, question_id: str, prompt: str, text: str, model: str, metadata: Mapping[str, Any]) -> None:
        """Appends an answer."""
        row = _row(question_id, prompt, text, model, {**metadata, "key": key})
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self._texts[key] = text


def write_answers(path: Path, prompts: Mapping[str, str], texts: Mapping[str, str], model: str) -> None:
    """Writes a whole file of answers, by question id, that were computed from others. Raises OSError."""
    partial = path.with_suffix(".partial")
    rows = (_row(question_id, prompts[question_id], text, model, {}) for question_id, text in texts.items())
    partial.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    os.replace(partial, path)


def _row(question_id: str, prompt: str, text: str, model: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question_id": question_id, "prompt": prompt, "text": text, "answer_id": uuid.uuid4().hex, "model_id": model,
        "metadata": dict(metadata),
    }  # fmt: skip


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the row of a line, or None if the line is no answer of an evaluation."""
    try:
        row = json.loads(line)
        is_answer = isinstance(row["text"], str) and isinstance(row["metadata"]["key"], str)
    except (ValueError, TypeError, KeyError):
        return None
    return row if is_answer else None
