"""Files of ScienceQA answers: the authors' result files, and JSON lines.

A result file has counts, the option of each problem, and the texts of the answers. LLaVA@15f31eb
llava/eval/eval_science_qa.py writes one, and llava/eval/table/results/test_sqa_llava_13b_v0.json is one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import StartupError
from .letters import letter_index


class ResultFile(BaseModel):
    """The contents of a result file. `results` and `outputs` have one entry for each problem id."""

    model_config = ConfigDict(frozen=True, strict=True)

    correct: int | None = None
    count: int | None = None
    results: dict[str, int]
    outputs: dict[str, str]


@dataclass(frozen=True)
class StoredFigures:
    """What a result file says by itself, without problems.json.

    `accuracy` is the stored one in percent, from the stored counts. `num_letters` of the `num_outputs` texts have a
    letter by the authors' rule. `other_letters` are the problems whose letter is not the stored option: the authors'
    random choices.
    """

    accuracy: float | None
    num_outputs: int
    num_letters: int
    other_letters: tuple[str, ...]


def read_answers(path: Path) -> ResultFile:
    """Returns the answers of a result file, or of JSON lines with `question_id` and `text`, which have no options.

    Raises StartupError if the file is missing or is neither.
    """
    lines = _read_text(path).strip().split("\n")
    try:
        rows = [json.loads(line) for line in lines]
        return ResultFile(results={}, outputs={str(row["question_id"]): row["text"] for row in rows})
    except (ValueError, TypeError, KeyError, RecursionError):
        return read_result_file(path)


def read_result_file(path: Path) -> ResultFile:
    """Returns the contents of a result file. Raises StartupError if the file is missing or is none."""
    try:
        result = ResultFile.model_validate(json.loads(_read_text(path)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StartupError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path} is no JSON file ({error})") from None
    if result.results.keys() != result.outputs.keys():
        raise StartupError(f"{path}: results and outputs are about different problems")
    return result


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise StartupError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read as text ({error})") from None


def stored_figures(result: ResultFile) -> StoredFigures:
    """Returns what can be computed from the file alone."""
    letters = {problem_id: letter_index(text) for problem_id, text in result.outputs.items()}
    return StoredFigures(
        accuracy=100 * result.correct / result.count if result.correct is not None and result.count else None,
        num_outputs=len(result.outputs),
        num_letters=sum(letter is not None for letter in letters.values()),
        other_letters=tuple(
            problem_id
            for problem_id, letter in letters.items()
            if letter is not None and letter != result.results[problem_id]
        ),
    )
