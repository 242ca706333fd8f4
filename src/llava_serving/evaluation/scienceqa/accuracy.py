"""ScienceQA's accuracy in the paper's columns (lupantech/ScienceQA@2cbf831 tools/evaluate_acc.py)."""

from collections.abc import Callable, Mapping

from ..accuracy_interval import accuracy_interval
from .problems import Problem

LOWER_GRADES = {f"grade{number}" for number in range(1, 7)}
UPPER_GRADES = {f"grade{number}" for number in range(7, 13)}
AVERAGE = "average"
# A problem with a hint and a picture belongs to TXT and to IMG.
COLUMNS: dict[str, Callable[[Problem], bool]] = {
    "NAT": lambda problem: problem.subject == "natural science",
    "SOC": lambda problem: problem.subject == "social science",
    "LAN": lambda problem: problem.subject == "language science",
    "TXT": lambda problem: bool(problem.hint),
    "IMG": lambda problem: bool(problem.image),
    "NO": lambda problem: not problem.hint and not problem.image,
    "G1-6": lambda problem: problem.grade in LOWER_GRADES,
    "G7-12": lambda problem: problem.grade in UPPER_GRADES,
    AVERAGE: lambda problem: True,
}
# LLaVA's paper (arXiv 2304.08485 v2), table of ScienceQA: 4,241 problems of the test split, by the delta of ScienceQA.
PUBLISHED_ROW = {
    "NAT": 90.36, "SOC": 95.95, "LAN": 88.00, "TXT": 89.49, "IMG": 88.00, "NO": 90.66, "G1-6": 90.93, "G7-12": 90.90,
    AVERAGE: 90.92,
}  # fmt: skip


def column_members(problems: Mapping[str, Problem]) -> dict[str, list[str]]:
    """Returns the ids of the problems of each column."""
    return {
        column: [problem_id for problem_id, problem in problems.items() if belongs(problem)]
        for column, belongs in COLUMNS.items()
    }


def accuracy(problems: Mapping[str, Problem], chosen: Mapping[str, int | None]) -> dict[str, float | None]:
    """Returns the accuracy of each column in percent, or None for a column without problems.

    `chosen` has the option of each problem. None, or no entry, is a wrong answer.
    """
    return {
        column: 100 * sum(is_right(problems, chosen, member) for member in members) / len(members) if members else None
        for column, members in column_members(problems).items()
    }


def intervals(
    problems: Mapping[str, Problem], chosen: Mapping[str, int | None]
) -> dict[str, tuple[float, float] | None]:
    """Returns the 95 % bootstrap interval of each column's accuracy, or None for a column of fewer than two."""
    return {
        column: accuracy_interval(members, [is_right(problems, chosen, member) for member in members])
        for column, members in column_members(problems).items()
    }


def is_right(problems: Mapping[str, Problem], chosen: Mapping[str, int | None], problem_id: str) -> bool:
    return chosen.get(problem_id) == problems[problem_id].answer
