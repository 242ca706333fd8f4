"""Answers on the disk, written as they come: a run that was killed continues with them.

The lines are in the format of LLaVA's own answer files (LLaVA@15f31eb llava/eval/model_vqa.py).
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .journal import KeptRows


class AnswerFile(KeptRows):
    """The answers of one output folder, by key. A key is a digest of all that an answer depends on.

    One process at a time has the file open. Raises StartupError if another one has it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._texts = {row["metadata"]["key"]: row["text"] for row in self._journal.rows if _is_answer(row)}

    def get(self, key: str) -> str | None:
        """Returns the text of the answer with this key, or None if there is none."""
        return self._texts.get(key)

    def add(
        self, key: str, question_id: int | str, prompt: str, text: str, model: str, metadata: Mapping[str, Any]
    ) -> None:
        """Appends an answer."""
        row = {
            "question_id": question_id, "prompt": prompt, "text": text, "answer_id": uuid.uuid4().hex,
            "model_id": model, "metadata": {**metadata, "key": key},
        }  # fmt: skip
        self._journal.add(row)
        self._texts[key] = text


def _is_answer(row: Mapping[str, Any]) -> bool:
    metadata = row.get("metadata")
    return isinstance(row.get("text"), str) and isinstance(metadata, dict) and isinstance(metadata.get("key"), str)
