"""Asks many questions at the same time, and keeps every answer as it comes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ..client.request_body import ask
from ..progress import Progress
from .answer_file import AnswerFile
from .answer_source import AnswerSource, QuestionRefused


@dataclass(frozen=True)
class Question:
    """One request: a prompt, at most one picture, and generation parameters."""

    question_id: str
    prompt: str
    image: Path | None
    parameters: Mapping[str, Any] = field(hash=False)

    def body(self) -> dict[str, Any]:
        """Returns the request's body, in the service's first form. Raises OSError if the picture cannot be read."""
        return ask(self.prompt, () if self.image is None else (self.image,), **self.parameters)

    def key(self, model: str) -> str:
        """Returns a digest of all that the answer depends on. Raises OSError if the picture cannot be read."""
        image = None if self.image is None else _file_digest(self.image)
        return digest(model, self.question_id, self.prompt, dict(self.parameters), image)


class Request(Protocol):
    """What `ask_all` asks: a Question, or another model's form of one."""

    @property
    def question_id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    def body(self) -> dict[str, Any]: ...

    def key(self, model: str) -> str: ...


@dataclass(frozen=True)
class Answers:
    """The texts of the answered questions, and the service's messages about the refused ones, by question id."""

    texts: dict[str, str]
    refusals: dict[str, str]


def ask_all(description: str, questions: Sequence[Request], source: AnswerSource, file: AnswerFile) -> Answers:
    """Returns the answers of all questions. Asks those that the file does not have, and adds their answers to it.

    Raises EndpointError or RequestError if the source fails, OSError, and KeyboardInterrupt. The answers that have come
    are in the file then.
    """
    keys = {question.question_id: question.key(source.model) for question in questions}
    known = {question_id: text for question_id, key in keys.items() if (text := file.get(key)) is not None}
    answers, missing = Answers(known, {}), [question for question in questions if question.question_id not in known]
    pool = ThreadPoolExecutor(source.concurrency, "ask")
    try:
        with Progress(description, " questions", len(questions), len(known)) as progress:
            pending = {pool.submit(_text, source, question): question for question in missing}
            for future in as_completed(pending):
                _keep(future, pending[future], keys, source.model, file, answers)
                progress.advance(1, f"{len(answers.refusals)} refused" if answers.refusals else "")
    except BaseException:
        source.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return answers


def _text(source: AnswerSource, question: Request) -> str:
    return source.text(question.body())


def _keep(
    future: "Future[str]", question: Request, keys: Mapping[str, str], model: str, file: AnswerFile, answers: Answers
) -> None:
    try:
        text = future.result()
    except QuestionRefused as refusal:
        answers.refusals[question.question_id] = str(refusal)
        return
    answers.texts[question.question_id] = text
    file.add(keys[question.question_id], question.question_id, question.prompt, text, model, question.parameters)


def digest(*parts: Any) -> str:
    """Returns a digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _file_digest(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()).hexdigest()
