"""The figures of answers to questions with reference answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..accuracy_interval import accuracy_interval
from .match import is_match
from .questions import VqaQuestion

ALL = "all"


def right_questions(questions: Iterable[VqaQuestion], texts: Mapping[str, str]) -> dict[str, bool]:
    """Returns whether each question is answered right, by its id. A question without an answer is wrong."""
    return {
        str(question.question_id): is_match(texts[str(question.question_id)], question.answers)
        if str(question.question_id) in texts
        else False
        for question in questions
    }


def summarize(questions: Sequence[VqaQuestion], texts: Mapping[str, str]) -> dict[str, Any]:
    """Returns the numbers of questions and of right answers, and the accuracy in percent, by category and of all."""
    right = right_questions(questions, texts)
    categories = {ALL: list(questions)}
    for question in questions:
        if question.category != ALL:
            categories.setdefault(question.category, []).append(question)
    count = {name: len(members) for name, members in categories.items()}
    hits = {name: sum(right[str(member.question_id)] for member in members) for name, members in categories.items()}
    return {
        "unanswered": sum(str(question.question_id) not in texts for question in questions),
        "count": count,
        "right": hits,
        "accuracy": {name: 100 * hits[name] / count[name] for name in categories},
        "accuracy_interval": {name: _interval(members, right) for name, members in categories.items()},
    }


def _interval(questions: Sequence[VqaQuestion], right: Mapping[str, bool]) -> tuple[float, float] | None:
    """Returns the interval over pictures, which several questions may share."""
    pictures = [question.image for question in questions]
    return accuracy_interval(pictures, [right[str(question.question_id)] for question in questions])


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the figures of each category, for people."""
    width = max(map(len, summary["count"]))
    lines = [
        f"{name:<{width}}  {accuracy:6.2f} %  {summary['right'][name]:,} of {summary['count'][name]:,}"
        f"{_interval_text(summary['accuracy_interval'][name])}"
        for name, accuracy in summary["accuracy"].items()
    ]
    return [*lines, f"{summary['unanswered']} questions without an answer, which count as wrong"]


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
