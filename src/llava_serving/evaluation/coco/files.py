"""LLaVA's three input files of the evaluation: questions, answers to them, and what is known about the pictures.

All are JSON lines (LLaVA@15f31eb playground/data/coco2014_val_qa_eval/, llava/eval/table/caps_boxes_*.jsonl). Rows are
joined by `question_id` and by picture, never by line.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ...errors import StartupError
from ..json_rows import read_rows
from ..picture_files import COCO_PREFIX


class CocoQuestion(BaseModel):
    """A question about a picture. Categories are those of the rows; LLaVA's are conv, detail and complex."""

    model_config = ConfigDict(frozen=True, strict=True)

    question_id: int | str
    image: str
    text: str
    category: str

    @property
    def id(self) -> str:
        return str(self.question_id)


class AnswerRow(BaseModel):
    """An answer to a question, by a model or by the judge's reference."""

    model_config = ConfigDict(frozen=True, strict=True)

    question_id: int | str
    text: str
    answer_id: str | None = None


class Box(BaseModel):
    """An object in a picture. `bbox` is x1, y1, x2, y2 as shares of width and height, from the top left."""

    model_config = ConfigDict(frozen=True)

    category: str
    bbox: tuple[int | float, int | float, int | float, int | float]  # printed as they are in the file


class PictureContext(BaseModel):
    """What a judge that sees no picture knows about it."""

    model_config = ConfigDict(frozen=True)

    image: str
    captions: tuple[str, ...]
    instances: tuple[Box, ...]


def read_questions(path: Path) -> list[CocoQuestion]:
    """Returns the questions. Raises StartupError for a wrong file, and if two questions have the same id."""
    questions = read_rows(path, CocoQuestion)
    _check_unique((question.id for question in questions), "question_id", path)
    return questions


def read_answers(path: Path) -> dict[str, str]:
    """Returns the texts of a file of answers by question id. Raises StartupError."""
    rows = read_rows(path, AnswerRow)
    _check_unique((str(row.question_id) for row in rows), "question_id", path)
    return {str(row.question_id): row.text for row in rows}


def read_contexts(path: Path) -> dict[str, PictureContext]:
    """Returns the contexts by the picture's name, as `picture_name` gives it. Raises StartupError."""
    rows = read_rows(path, PictureContext)
    _check_unique((picture_name(row.image) for row in rows), "image", path)
    return {picture_name(row.image): row for row in rows}


def picture_name(image: str) -> str:
    """Returns the name of a picture without COCO's prefix."""
    return image.removeprefix(COCO_PREFIX)


def _check_unique(values: Iterable[str], field: str, path: Path) -> None:
    (value, count), *_ = Counter(values).most_common(1)
    if count > 1:
        raise StartupError(f"{path} has {field} {value} {count} times")
