"""The judge's scores by category: means, relative score, interval, and the figure as the authors' script gives it."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bootstrap import Columns, bootstrap_interval
from .verdict import Scores

ALL = "all"


@dataclass(frozen=True)
class ScoredRow:
    """The scores of one question, (reference, candidate). `published` is None where the authors' rule has no row."""

    category: str
    picture: Hashable
    scores: Scores | None
    published: Scores | None


def score_table(rows: Sequence[ScoredRow]) -> dict[str, dict[str, Any]]:
    """Returns the figures of each category, in the order of the rows, and of `all` rows.

    The relative score is 100 times the sum of the candidate's scores over the sum of the reference's, as in
    LLaVA@15f31eb llava/eval/summarize_gpt_review.py. `all` is over the rows and not the mean of the categories. Rows
    without scores are counted and left out; `relative_score_as_published` counts them as -1, as that script did.
    """
    return {name: _figures(members) for name, members in by_category(rows).items()}


def by_category(rows: Iterable[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Returns the rows of each category, with `all` first."""
    groups: dict[str, list[ScoredRow]] = {ALL: list(rows)}
    for row in groups[ALL]:
        if row.category != ALL:
            groups.setdefault(row.category, []).append(row)
    return groups


def relative_score(scores: Sequence[Scores]) -> float | None:
    """Returns 100 times the candidate's sum over the reference's, or None without scores or with a sum of 0."""
    reference, candidate = (sum(pair[side] for pair in scores) for side in (0, 1))
    return 100 * candidate / reference if reference else None


def _figures(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    scored = [(row.picture, row.scores) for row in rows if row.scores is not None]
    scores = [pair for _, pair in scored]
    interval = None
    if scored:
        interval = bootstrap_interval([picture for picture, _ in scored], np.array(scores), _ratio)
    return {
        "count": len(rows),
        "unparsable": len(rows) - len(scored),
        "mean_reference": float(np.mean([pair[0] for pair in scores])) if scores else None,
        "mean_candidate": float(np.mean([pair[1] for pair in scores])) if scores else None,
        "relative_score": relative_score(scores),
        "relative_score_interval": None if interval is None else list(interval),
        "relative_score_as_published": _as_published([row.published for row in rows if row.published is not None]),
    }


def _as_published(scores: Sequence[Scores]) -> float | None:
    """Returns the authors' figure: means with three decimals, their ratio with one."""
    if not scores:
        return None
    reference, candidate = (round(float(np.mean([pair[side] for pair in scores])), 3) for side in (0, 1))
    return round(candidate / reference * 100, 1) if reference else None


def _ratio(sums: Columns) -> Columns:
    ratio: Columns = 100 * sums[:, 1] / sums[:, 0]
    return ratio


def flips(pairs: Iterable[tuple[Scores, Scores]]) -> int:
    """Returns how many verdicts name another winner when the order changes. `pairs` has the scores of both orders."""
    return sum(_sign(first) != _sign(second) for first, second in pairs)


def _sign(scores: Scores) -> int:
    return (scores[1] > scores[0]) - (scores[1] < scores[0])


def table_lines(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the table for people."""
    width = max(len("category"), *map(len, table))
    lines = [f"{'category':<{width}}  count  unparsable  reference  candidate  relative  95 % interval  as published"]
    for name, row in table.items():
        low_high = row["relative_score_interval"]
        interval = "-" if low_high is None else f"{low_high[0]:.1f} - {low_high[1]:.1f}"
        lines.append(
            f"{name:<{width}}  {row['count']:>5}  {row['unparsable']:>10}  {_number(row['mean_reference'], 2):>9}  "
            f"{_number(row['mean_candidate'], 2):>9}  {_number(row['relative_score'], 1):>8}  {interval:>13}  "
            f"{_number(row['relative_score_as_published'], 1):>12}"
        )
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
