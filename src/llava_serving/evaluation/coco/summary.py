"""summary.json of the evaluation with a judge: the figures, and all that decides them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..picture_files import COCO_PREFIX
from .judge_prompt import Order
from .judged_question import JudgedQuestion
from .review_file import Review
from .score_table import ScoredRow, flips, score_table, table_lines

# LLaVA's paper, arXiv 2304.08485 v2, table 4: full data, judged by GPT-4 of April 2023.
PUBLISHED = {"all": 85.1, "conv": 83.1, "detail": 75.3, "complex": 96.5}
NOT_COMPARABLE = (
    "The judge's version decides the score: it is not comparable with the published 85.1, whose judge, GPT-4 of 2023, "
    "is retired. Compare only runs with the same judge, questions and references."
)


def summary_of(rows: Sequence[JudgedQuestion], judge: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the figures. `judge` has the judge's name, URL and parameters, None before judging."""
    counts = {
        "questions": len(rows),
        "unanswered": sum(row.candidate is None for row in rows),
        "without_reference": sum(row.reference is None for row in rows),
    }
    if judge is None:
        return counts
    judged = [row for row in rows if row.is_judged]
    return {
        **counts,
        "unjudged": len(rows) - len(judged),
        "judge": {**judge, **_verdict_facts(judged)},
        "note": NOT_COMPARABLE,
        "published": PUBLISHED,
        "categories": score_table([scored_row(row) for row in judged]),
        **_order_facts(judged),
        "judge_tokens": _tokens(_reviews(judged)),
    }


def scored_row(row: JudgedQuestion) -> ScoredRow:
    picture = row.question.image.removeprefix(COCO_PREFIX)
    return ScoredRow(row.question.category, picture, row.scores, row.published)


def _reviews(rows: Iterable[JudgedQuestion]) -> list[Review]:
    return [review for row in rows for reviews in row.verdicts.values() for review in reviews]


def _verdict_facts(rows: Iterable[JudgedQuestion]) -> dict[str, Any]:
    """Returns the versions that the server named, the days, and the number of the judge's replies."""
    reviews = _reviews(rows)
    dates = sorted(review.date for review in reviews if review.date)
    return {
        "versions": sorted({review.judge for review in reviews if review.judge}),
        "first_verdict": dates[0] if dates else None,
        "last_verdict": dates[-1] if dates else None,
        "replies": len(reviews),
    }


def _order_facts(rows: Sequence[JudgedQuestion]) -> dict[str, Any]:
    """Returns the figures of each order, and how often the order decides who wins. Empty with one order."""
    if not any(len(row.verdicts) > 1 for row in rows):
        return {}
    both = [(row, [row.scores_in(order) for order in Order]) for row in rows]
    pairs = [(first, second) for _, (first, second) in both if first is not None and second is not None]
    return {
        "orders": {
            order: score_table([ScoredRow("all", scored_row(row).picture, row.scores_in(order), None) for row in rows])[
                "all"
            ]["relative_score"]
            for order in Order
        },
        "winner_depends_on_order": flips(pairs),
        "judged_in_both_orders": len(pairs),
    }


def _tokens(reviews: Sequence[Review]) -> dict[str, int]:
    """Returns the judge's tokens, and for how many of its replies the server did not count them."""
    names = ("prompt_tokens", "completion_tokens")
    totals = {name: sum(review.usage.get(name, 0) for review in reviews) for name in names}
    return {**totals, "replies_without_usage": sum(not review.usage for review in reviews)}


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the figures for people."""
    if "categories" not in summary:
        return [
            f"{summary['questions'] - summary['unanswered']} of {summary['questions']} questions are answered; "
            "give --judge-url and --judge-model to judge the answers"
        ]
    lines = table_lines(summary["categories"])
    if "orders" in summary:
        orders = ", ".join(f"{order.replace('_', ' ')} {_score(score)}" for order, score in summary["orders"].items())
        lines.append(
            f"relative score by order: {orders}; the order decides the winner in "
            f"{summary['winner_depends_on_order']} of {summary['judged_in_both_orders']} questions"
        )
    return [*lines, judge_line(summary), summary["note"]]


def judge_line(summary: Mapping[str, Any]) -> str:
    """Returns who judged, when, and for how many tokens."""
    judge, tokens = summary["judge"], summary["judge_tokens"]
    versions = ", ".join(judge["versions"]) or "unknown"
    day = (judge["last_verdict"] or "an unknown day")[:10]
    line = (
        f"judge: {judge['model']} (version {versions}), {day}; {tokens['prompt_tokens']:,} tokens read and "
        f"{tokens['completion_tokens']:,} written in {judge['replies']} replies"
    )
    if tokens["replies_without_usage"]:
        line += f", {tokens['replies_without_usage']} of them without a count"
    if summary["unjudged"]:
        line += f"; not judged: {summary['unjudged']}"
    return line


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"
