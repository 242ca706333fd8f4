"""The figures of verdicts, against calculations of their own."""

import json
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from evaluate_command import evaluate

from llava_serving.evaluation.bootstrap import bootstrap_interval
from llava_serving.evaluation.coco.score_table import ScoredRow, score_table


def test_figures_equal_those_of_an_independent_calculation() -> None:
    rng = random.Random(5)
    rows = []
    for picture in range(30):
        for category in ("conv", "detail", "complex"):
            scores = None if rng.random() < 0.1 else (float(rng.randint(5, 10)), float(rng.randint(1, 10)))
            rows.append(ScoredRow(category, picture, scores, scores or (-1.0, -1.0)))
    table = score_table(rows)
    assert list(table) == ["all", "conv", "detail", "complex"]
    for name, figures in table.items():
        members = [row for row in rows if name in ("all", row.category)]
        scores = [row.scores for row in members if row.scores is not None]
        reference, candidate = (sum(Fraction(pair[side]) for pair in scores) for side in (0, 1))
        assert figures["count"] == len(members)
        assert figures["unparsable"] == len(members) - len(scores)
        assert figures["mean_candidate"] == pytest.approx(float(candidate / len(scores)))
        assert figures["relative_score"] == pytest.approx(float(100 * candidate / reference))
        low, high = figures["relative_score_interval"]
        assert low < figures["relative_score"] < high


def test_rows_without_scores_count_as_minus_one_in_the_published_figure_only() -> None:
    rows = [ScoredRow("conv", 1, (10, 8), (10, 8)), ScoredRow("conv", 2, None, (-1, -1))]
    figures = score_table(rows)["all"]
    assert figures["relative_score"] == 80
    assert figures["relative_score_as_published"] == 77.8  # 3.5 / 4.5


def test_without_scores_there_are_no_figures() -> None:
    figures = score_table([ScoredRow("conv", 1, None, None)])["all"]
    assert figures["relative_score"] is None
    assert figures["relative_score_as_published"] is None
    assert figures["relative_score_interval"] is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Samples of 40 pictures with 3 equal rows each: an interval over rows would be too narrow."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rows = np.repeat(np.stack([np.full(40, 8.0), rng.normal(6, 1.5, 40)], axis=1), 3, axis=0)
        groups = [number // 3 for number in range(120)]
        low, high = bootstrap_interval(groups, rows, lambda sums: 100 * sums[:, 1] / sums[:, 0]) or (0, 0)
        covered += low <= 75 <= high
    assert 178 <= covered <= 199


def test_a_review_file_of_the_authors_format_has_the_authors_figure(tmp_path: Path) -> None:
    reviews = [
        {"question_id": 0, "category": "conv", "content": "8 6\nGood.", "tuple": [8.0, 6.0]},
        {"question_id": 1, "category": "conv", "content": "9, 9\nGood.", "tuple": [-1, -1]},
        {"question_id": 2, "category": "detail", "content": "10 7\nGood.", "tuple": [10.0, 7.0]},
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reviews), "utf-8")
    shown = {line.split()[0]: line.split() for line in evaluate("coco", "--reviews", path).splitlines()}
    assert shown["all"][-1] == "70.6"  # (6 - 1 + 7) / (8 - 1 + 10), of means with three decimals
    assert shown["all"][5] == "81.5"  # (6 + 9 + 7) / (8 + 9 + 10)
    assert shown["conv"][-1] == "71.4"
    assert shown["detail"][-1] == "70.0"
