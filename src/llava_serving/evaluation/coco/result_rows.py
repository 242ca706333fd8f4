"""results.json: every question with both answers, its scores and the judge's words, for programs and for `compare`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import StartupError
from .judged_question import JudgedQuestion
from .review_file import as_json

RESULTS = "results.json"


def result_rows(rows: Sequence[JudgedQuestion]) -> list[dict[str, Any]]:
    return [
        {
            **row.question.model_dump(),
            "reference": row.reference,
            "answer": row.candidate,
            "scores": row.scores,
            "verdicts": {order: [as_json(review) for review in reviews] for order, reviews in row.verdicts.items()},
        }
        for row in rows
    ]


def read_results(folder: Path) -> dict[str, Any]:
    """Returns the summary and the questions of an output folder. Raises StartupError."""
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text("utf-8"))
        if "categories" not in content["summary"]:
            raise StartupError(f"{folder} has answers and no verdicts: judge them first, with --judge-url")
        content["questions"][0]["question_id"]
    except FileNotFoundError:
        raise StartupError(f"{folder} has no {RESULTS}: it is no output of `evaluate coco`") from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StartupError(f"{path} is not readable as the results of an evaluation ({error})") from None
    result: dict[str, Any] = content
    return result
