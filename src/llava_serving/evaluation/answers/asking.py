"""Asks many questions at the same time, and keeps every answer as it comes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ...client.request_body import ask
from ...progress import Progress
from .answer_file import AnswerFile
from .answer_source import AnswerSource
from .concurrent_calls import call_each


@dataclass(frozen=True)
class Question:
    """One request: a prompt, at most one picture, and generation parameters."""

    question_id: str
    prompt: str
    image: Path | None
    parameters: Mapping[str, Any] = field(hash=False)
    written_id: int | str | None = None  # the id as the questions' file has it, if that is no text

    def body(self) -> dict[str, Any]:
        """Returns the request's body, in the service's first form. Raises OSError if the picture cannot be read."""
        return ask(self.prompt, () if self.image is None else (self.image,), **self.parameters)

    def key(self, model: str) -> str:
        """Returns a digest of all that the answer depends on. Raises OSError if the picture cannot be read."""
        image = None if self.image is None else _file_digest(self.image)
        return digest(model, self.question_id, self.prompt, dict(self.parameters), image)


@dataclass(frozen=True)
class Answers:
    """The texts of the answered questions, and the messages about the questions that failed, by question id.

    A failed question was refused, or failed after all retries. The next run asks it again.
    """

    texts: dict[str, str]
    refusals: dict[str, str]


def ask_all(description: str, questions: Sequence[Question], source: AnswerSource, file: AnswerFile) -> Answers:
    """Returns the answers of all questions. Asks those that the file does not have, and adds their answers to it.

    Raises EndpointError if the source is gone, OSError, and KeyboardInterrupt. The answers that have come are in the
    file then.
    """
    keys = {question.question_id: question.key(source.model) for question in questions}
    texts = {question_id: text for question_id, key in keys.items() if (text := file.get(key)) is not None}
    missing = [question for question in questions if question.question_id not in texts]

    def keep(question: Question, text: str) -> None:
        name = question.question_id if question.written_id is None else question.written_id
        file.add(keys[question.question_id], name, question.prompt, text, source.model, question.parameters)
        texts[question.question_id] = text

    with Progress(description, " questions", len(questions), len(texts)) as progress:
        failures = call_each(
            progress, missing, lambda item: source.text(item.body()), keep, source.concurrency, source.stop
        )
    return Answers(texts, {missing[index].question_id: message for index, message in failures.items()})


def digest(*parts: Any) -> str:
    """Returns a digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _file_digest(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()).hexdigest()
