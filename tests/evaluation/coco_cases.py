"""The project's own small set in the formats of LLaVA-Bench (COCO), and the command on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluate_command import rows
from server import ROOT

FOLDER = ROOT / "demo" / "evaluation"
QUESTIONS = rows(FOLDER / "questions.jsonl")
IDS = [row["question_id"] for row in QUESTIONS]


def coco(output: Path, *options: object, questions: Path = FOLDER / "questions.jsonl") -> tuple[object, ...]:
    """The default of 1,024 tokens for an answer is more than the demo model's context holds."""
    return ("coco", "--questions", questions, "--pictures", FOLDER / "pictures", "--output", output, *options)


def judged_by(url: str, *options: object) -> tuple[object, ...]:
    return (
        "--reference", FOLDER / "reference.jsonl", "--context", FOLDER / "context.jsonl", "--judge-url", url,
        "--judge-model", "judge", *options,
    )  # fmt: skip


def answers_file(path: Path, text: Callable[[dict[str, Any]], str]) -> Path:
    """Writes an answer to each question in reverse order, so that rows joined by line would be wrong."""
    lines = [json.dumps({"question_id": row["question_id"], "text": text(row)}) for row in reversed(QUESTIONS)]
    path.write_text("\n".join(lines), "utf-8")
    return path
