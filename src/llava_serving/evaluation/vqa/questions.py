"""Questions about pictures with reference answers: one JSON object on each line."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import StartupError


class VqaQuestion(BaseModel):
    """A question. `image` is a file name. `category` groups questions in the summary."""

    model_config = ConfigDict(frozen=True, strict=True)

    question_id: int | str
    image: str
    question: str
    answers: list[str] = Field(min_length=1)
    category: str = "all"


def read_vqa_questions(path: Path) -> list[VqaQuestion]:
    """Returns the questions of a file. A question without `question_id` has the number of its line, from 0.

    Raises StartupError if there is no such file, or if a line is wrong.
    """
    questions = list(_questions(path))
    if not questions:
        raise StartupError(f"{path} holds no question")
    ids = [str(question.question_id) for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise StartupError(f"{path} has question_id {twice} twice")
    return questions


def _questions(path: Path) -> Iterator[VqaQuestion]:
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines() also splits at U+2028, which JSON allows
    except FileNotFoundError:
        raise StartupError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read as text ({error})") from None
    for number, line in enumerate(lines):
        if line.strip():
            yield _question(line, number, f"line {number + 1} of {path}")


def _question(line: str, number: int, place: str) -> VqaQuestion:
    try:
        content = json.loads(line)
        if isinstance(content, dict):
            content = {"question_id": number} | content
        return VqaQuestion.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StartupError(f"{place}: {'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{place} is no JSON object ({error})") from None
