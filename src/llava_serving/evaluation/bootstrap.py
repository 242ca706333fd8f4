"""Percentile bootstrap of figures that several groups of rows share (Efron and Tibshirani 1993, chapter 13)."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
CONFIDENCE = 0.95
SEED = 20230417

Columns = NDArray[np.float64]


def bootstrap_interval(
    groups: Sequence[Hashable], rows: Columns, statistic: Callable[[Columns], Columns]
) -> tuple[float, float] | None:
    """Returns the 95 % interval of a figure that depends only on the sums of the columns of `rows`, [row, column].

    Whole groups are drawn, with replacement: questions about one picture are not independent. `statistic` takes sums,
    [draw, column], and returns the figure of each draw. The seed is fixed. Returns None for less than two groups, and
    if a draw has no figure.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return None
    sums = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(sums, [numbers[group] for group in groups], rows)
    draws = np.random.default_rng(SEED).integers(0, len(numbers), (DRAWS, len(numbers)))
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = statistic(sums[draws].sum(axis=1))
    if not np.isfinite(figures).all():
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(figures, (tail, 100 - tail))
    return float(low), float(high)
