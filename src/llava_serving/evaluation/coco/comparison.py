"""Compares the scores of two runs question by question: a paired comparison needs far fewer questions than two means.

A question counts if both runs have its scores. Intervals come from draws of pictures, the same for both runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..bootstrap import Columns, bootstrap_interval
from ..picture_files import COCO_PREFIX

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]
# What must be equal, so that a difference is one of the models. The names are those of summary.json.
SAME_FIELDS = ("judge.model", "judge.url", "judge.parameters", "judge.versions", "judge.orders", "parameters")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the comparison of two contents of results.json, by category and of `all`."""
    pairs = _pairs(first["questions"], second["questions"])
    groups: dict[str, list[Pair]] = {"all": pairs}
    for pair in pairs:
        if (category := str(pair[0]["category"])) != "all":
            groups.setdefault(category, []).append(pair)
    return {
        "warnings": _warnings(first, second, len(pairs)),
        "categories": {name: _figures(members) for name, members in groups.items()},
    }


def _pairs(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> list[Pair]:
    others = {str(row["question_id"]): row for row in second}
    return [
        (row, other)
        for row in first
        if (other := others.get(str(row["question_id"]))) is not None and row["scores"] and other["scores"]
    ]


def _figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    differences = [other["scores"][1] - row["scores"][1] for row, other in pairs]
    table = np.array([[*row["scores"], *other["scores"]] for row, other in pairs]).reshape(-1, 4)
    sums = table.sum(axis=0, keepdims=True)
    pictures = [str(row["image"]).removeprefix(COCO_PREFIX) for row, _ in pairs]
    interval = bootstrap_interval(pictures, table, _difference) if pairs else None
    return {
        "count": len(pairs),
        "relative_score_a": _relative(sums[0, :2]),
        "relative_score_b": _relative(sums[0, 2:]),
        "difference": float(_difference(sums)[0]) if pairs else None,
        "difference_interval": None if interval is None else list(interval),
        "wins": sum(difference > 0 for difference in differences),
        "ties": sum(difference == 0 for difference in differences),
        "losses": sum(difference < 0 for difference in differences),
    }


def _relative(sums: Columns) -> float | None:
    return float(100 * sums[1] / sums[0]) if sums[0] else None


def _difference(sums: Columns) -> Columns:
    """Returns the relative score of B less that of A. Columns: reference and candidate of A, then those of B."""
    difference: Columns = 100 * sums[:, 3] / sums[:, 2] - 100 * sums[:, 1] / sums[:, 0]
    return difference


def _warnings(first: Mapping[str, Any], second: Mapping[str, Any], num_pairs: int) -> list[str]:
    """Returns what makes the difference one of other things than the models."""
    a, b = first["summary"], second["summary"]
    warnings = [
        f"{name} differs ({_field(a, name)} and {_field(b, name)}): the difference is not that of the models alone"
        for name in SAME_FIELDS
        if _field(a, name) != _field(b, name)
    ]
    others = {str(row["question_id"]): row for row in second["questions"]}
    shared = [(row, others[str(row["question_id"])]) for row in first["questions"] if str(row["question_id"]) in others]
    changed = sum(any(row[name] != other[name] for name in ("text", "reference")) for row, other in shared)
    if changed:
        warnings.append(f"{changed} questions have another text or another reference in the second run")
    left_out = max(len(first["questions"]), len(second["questions"])) - num_pairs
    if left_out:
        warnings.append(f"{left_out} questions without scores in both runs are left out")
    return warnings


def _field(summary: Mapping[str, Any], name: str) -> Any:
    value: Any = summary
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Returns the table for people."""
    table = comparison["categories"]
    width = max(len("category"), *map(len, table))
    lines = [f"{'category':<{width}}  count      A      B   B - A  95 % interval  wins  ties  losses of B"]
    for name, row in table.items():
        low_high = row["difference_interval"]
        interval = "-" if low_high is None else f"{low_high[0]:+.1f} to {low_high[1]:+.1f}"
        lines.append(
            f"{name:<{width}}  {row['count']:>5}  {_number(row['relative_score_a']):>5}  "
            f"{_number(row['relative_score_b']):>5}  {_number(row['difference'], '+'):>6}  {interval:>13}  "
            f"{row['wins']:>4}  {row['ties']:>4}  {row['losses']:>6}"
        )
    return [*lines, *(f"warning: {warning}" for warning in comparison["warnings"])]


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1f}"
