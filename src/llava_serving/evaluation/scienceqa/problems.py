"""ScienceQA's problems (lupantech/ScienceQA data/scienceqa): problems.json, and the splits in pid_splits.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...errors import StartupError

LETTERS = "ABCDE"  # LLaVA@15f31eb llava/eval/eval_science_qa.py names the options of a problem by these letters


class Problem(BaseModel):
    """The fields of a problem that prompts and columns of accuracy need. `answer` is an index into `choices`.

    `hint` is empty, and `image` is None, for a problem without one.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    question: str
    choices: list[str]
    answer: int
    hint: str
    image: str | None
    subject: str
    grade: str

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if not 1 <= len(self.choices) <= len(LETTERS):
            raise ValueError(f"{len(self.choices)} choices, and the options have the letters A to {LETTERS[-1]}")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer}, which is no index of its {len(self.choices)} choices")
        return self

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return LETTERS[: len(self.choices)]


def read_problems(problems: Path, splits: Path, split: str) -> dict[str, Problem]:
    """Returns the problems of a split by their ids, in the order of the split.

    Raises StartupError if a file is missing or is no such file, if there is no such split, or if a problem of the split
    is missing or wrong.
    """
    ids = _read_split(splits, split)
    content = _read_object(problems, "ScienceQA's problems, by their ids")
    if missing := [problem_id for problem_id in ids if problem_id not in content]:
        raise StartupError(
            f"{problems} lacks {len(missing)} of the {len(ids)} problems of the split {split}, the first is "
            f"{missing[0]}: it is not the problems.json that {splits} belongs to"
        )
    return {problem_id: _problem(content[problem_id], problem_id, problems) for problem_id in ids}


def _read_split(splits: Path, split: str) -> list[str]:
    content = _read_object(splits, "lists of problem ids, by the name of a split")
    if split not in content:
        raise StartupError(f"{splits} has no split {split}; it has {', '.join(content)}")
    ids = content[split]
    if not isinstance(ids, list) or not all(isinstance(problem_id, str) for problem_id in ids):
        raise StartupError(f"the split {split} of {splits} is not a list of problem ids, which are strings")
    if len(set(ids)) < len(ids):
        raise StartupError(f"the split {split} of {splits} lists a problem twice")
    return ids


def _read_object(path: Path, expected: str) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StartupError(f"there is no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StartupError(f"{path} is no JSON file ({error})") from None
    if not isinstance(content, dict):
        raise StartupError(f"{path} holds a {type(content).__name__}, not an object of {expected}")
    return content


def _problem(content: object, problem_id: str, path: Path) -> Problem:
    try:
        return Problem.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise StartupError(f"problem {problem_id} of {path}: {field}{': ' if field else ''}{message}") from None
