"""A small set in ScienceQA's format, made for these tests: problems, splits and pictures."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = {"1": "red", "4": "blue"}
PROBLEMS: dict[str, dict[str, Any]] = {
    "1": {
        "question": "What  is the color of the square?", "choices": ["blue", "red"], "answer": 1,
        "hint": "Look at the picture.", "image": "image.png", "grade": "grade2", "subject": "natural science",
    },
    "2": {
        "question": "Which word is a verb?", "choices": ["run", "table", "green"], "answer": 0, "hint": "",
        "image": None, "grade": "grade7", "subject": "language science",
    },
    "3": {
        "question": "Question: What is a town?", "choices": ["a", "b", "c", "d"], "answer": 3, "hint": " A  text. ",
        "image": None, "grade": "grade6", "subject": "social science",
    },
    "4": {
        "question": "Is it blue?", "choices": ["yes", "no"], "answer": 0, "hint": "",
        "image": "image.png", "grade": "grade12", "subject": "natural science",
    },
    "5": {
        "question": "Not in the test split", "choices": ["yes"], "answer": 0, "hint": "", "image": None,
        "grade": "grade1", "subject": "natural science",
    },
}  # fmt: skip
REST = {"task": "closed choice", "topic": "t", "category": "c", "skill": "s", "lecture": "", "solution": ""}
SPLITS = {"train": ["5"], "test": ["1", "2", "3", "4"]}


def write_scienceqa(folder: Path, changes: dict[str, dict[str, Any]] | None = None) -> Path:
    """Writes problems.json, pid_splits.json and images/test. `changes` are fields of problems, by their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = {
        problem_id: REST | problem | (changes or {}).get(problem_id, {}) for problem_id, problem in PROBLEMS.items()
    }
    (folder / "problems.json").write_text(json.dumps(problems), "utf-8")
    (folder / "pid_splits.json").write_text(json.dumps(SPLITS), "utf-8")
    for problem_id, color in COLORS.items():
        picture = folder / "images" / "test" / problem_id / "image.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), color).save(picture)
    return folder
