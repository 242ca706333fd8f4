"""How far an accuracy may be from that of another sample of the same size."""

from collections.abc import Hashable, Sequence

import numpy as np

from .bootstrap import Columns, bootstrap_interval


def accuracy_interval(groups: Sequence[Hashable], right: Sequence[bool]) -> tuple[float, float] | None:
    """Returns the 95 % bootstrap interval of an accuracy in percent.

    `groups` has the group of each question, such as its picture: groups are drawn whole. Returns None for less than two
    groups.
    """
    rows = np.array([(is_right, 1.0) for is_right in right], dtype=np.float64).reshape(-1, 2)
    return bootstrap_interval(groups, rows, _accuracy)


def _accuracy(sums: Columns) -> Columns:
    accuracy: Columns = 100 * sums[:, 0] / sums[:, 1]
    return accuracy
