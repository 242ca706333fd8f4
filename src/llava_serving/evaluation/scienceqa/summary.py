"""The figures of ScienceQA answers: by the strict rule, by the authors' rule, and with a judge."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .accuracy import AVERAGE, COLUMNS, PUBLISHED_ROW, accuracy, intervals
from .ensemble import complement, disagreements, judged
from .letters import published_index, published_letter, strict_index
from .problems import Problem
from .result_file import StoredFigures

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Texts:
    """The texts of answers by problem id: the model's, the judge's own, and the judge's decisions.

    `stored` has the options that the authors' result file says, which include their random choices.
    """

    model: Mapping[str, str]
    judge: Mapping[str, str] = field(default_factory=dict)
    decisions: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, int] = field(default_factory=dict)


def summarize(problems: Mapping[str, Problem], texts: Texts, seed: int) -> dict[str, Any]:
    """Returns the figures. A problem without an answer is wrong by the strict rule, and left out by the authors' rule.

    Accuracies are in percent. `unparsed` counts answers without a letter of an option by the strict rule.
    `random_choices` counts answers whose option the authors' rule drew at random.
    """
    answered = {problem_id: problem for problem_id, problem in problems.items() if problem_id in texts.model}
    strict = {problem_id: strict_index(texts.model[problem_id], problem) for problem_id, problem in answered.items()}
    published = {
        problem_id: published_index(texts.model[problem_id], problem, problem_id, seed)
        for problem_id, problem in answered.items()
    } | {problem_id: option for problem_id, option in texts.stored.items() if problem_id in answered}
    as_published = accuracy(answered, published)
    return {
        "count": len(problems),
        "unanswered": len(problems) - len(answered),
        "unparsed": sum(option is None for option in strict.values()),
        "accuracy": accuracy(problems, strict),
        "accuracy_interval": intervals(problems, strict),
        "accuracy_as_published": as_published[AVERAGE],
        "accuracy_as_published_by_column": as_published,
        "random_choices": sum(_is_drawn(texts.model[problem_id], problem) for problem_id, problem in answered.items()),
        "seed": None if texts.stored else seed,
        "ensembles": _ensembles(answered, texts, seed),
        "paper": PUBLISHED_ROW,
    }


def summarize_stored(figures: StoredFigures) -> dict[str, Any]:
    """Returns the figures of a result file without problems.json: the stored accuracy, which cannot be checked."""
    return {
        "count": figures.num_outputs,
        "accuracy_as_published": figures.accuracy,
        "letters": figures.num_letters,
        "letter_is_not_stored_option": list(figures.other_letters),
    }


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns a table of the figures, for people."""
    rows: dict[str, Row] = {
        "strict: an unparsed answer is wrong": summary["accuracy"],
        "the authors' rule": summary["accuracy_as_published_by_column"],
        **{f"with the judge: {name}": row for name, row in summary["ensembles"].items()},
        "the paper, for comparison": summary["paper"],
    }
    width = max(map(len, rows))
    lines = [f"{'':<{width}}  " + " ".join(f"{column:>7}" for column in COLUMNS)]
    lines += [
        f"{name:<{width}}  " + " ".join(f"{_cell(row[column]):>7}" for column in COLUMNS) for name, row in rows.items()
    ]
    if (interval := summary["accuracy_interval"][AVERAGE]) is not None:
        lines.append(f"strict average: 95 % interval {interval[0]:.2f} to {interval[1]:.2f}")
    lines.append(
        f"{summary['count']} problems, {summary['unanswered']} of them without an answer; {summary['unparsed']} "
        "answers name no option"
    )
    if summary["accuracy_as_published"] is not None:
        lines.append(f"accuracy by the authors' rule: {summary['accuracy_as_published']:.4f} %{_choices(summary)}")
    return lines


def stored_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the figures of a result file without problems.json, for people."""
    accuracy, others = summary["accuracy_as_published"], summary["letter_is_not_stored_option"]
    return [
        "the file stores no counts" if accuracy is None else f"accuracy by the file's own counts: {accuracy:.4f} %",
        f"{summary['letters']} of {summary['count']} answers have a letter by the authors' rule; {len(others)} of the "
        f"letters are not the stored option{': ' if others else ''}{', '.join(others[:5])}",
        "which answers are right, and the accuracy of each column, need --problems and --splits",
    ]


def _choices(summary: Mapping[str, Any]) -> str:
    """Returns what the authors' rule chose at random, for people."""
    if summary["seed"] is None:
        return f", from the options that the file stores; {summary['random_choices']} of them were chosen at random"
    return (
        f"; it chose {summary['random_choices']} options at random, with seed {summary['seed']} (the authors' choices "
        "had no seed)"
    )


def _is_drawn(text: str, problem: Problem) -> bool:
    letter = published_letter(text)
    return letter is None or letter not in problem.letters


def _ensembles(problems: Mapping[str, Problem], texts: Texts, seed: int) -> dict[str, dict[str, float | None]]:
    """Returns the rows of accuracy with a judge, over the problems that both have answered."""
    both = {problem_id: problem for problem_id, problem in problems.items() if problem_id in texts.judge}
    if not both:
        return {}
    rows = {
        "the judge alone, text only": accuracy(
            both, {problem_id: strict_index(texts.judge[problem_id], problem) for problem_id, problem in both.items()}
        ),
        "complement": accuracy(both, complement(both, texts.model, texts.judge, seed)),
    }
    if any(problem_id in texts.decisions for problem_id in disagreements(both, texts.model, texts.judge)):
        rows["decision"] = accuracy(both, judged(both, texts.model, texts.decisions, seed))
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
