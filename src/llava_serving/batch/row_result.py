"""The result of one row."""

import json
from dataclasses import dataclass
from typing import Any

from ..client.answer_texts import answer_texts

COLUMNS = ("file", "row", "prediction", "error")


@dataclass(frozen=True)
class RowResult:
    """The answer's JSON value, in the form of the row's request, or the error. One of the two is None.

    `row` is the row's index in `file`, None if the error concerns the whole file.
    """

    file: str
    row: int | None
    answer: Any
    error: dict[str, Any] | None

    def columns(self) -> tuple[str, int | None, str | None, str | None]:
        """Returns the cells of COLUMNS. `prediction` is the answer's text, or its JSON if it has several texts."""
        prediction = None if self.answer is None else _cell(_prediction(self.answer))
        error = None if self.error is None else _cell(f"{self.error['code']}: {self.error['message']}")
        return _cell(self.file), self.row, prediction, error


def _cell(text: str) -> str:
    """Returns the text with line feeds for carriage returns.

    CSV writers, Azure's too, do not quote a carriage return, and readers take it for the end of the row.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _prediction(answer: Any) -> str:
    texts = [text for prompt_texts in answer_texts(answer) for text in prompt_texts]
    return texts[0] if len(texts) == 1 else json.dumps(answer, ensure_ascii=False)
