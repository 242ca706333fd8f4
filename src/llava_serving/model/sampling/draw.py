"""Draws tokens with the random numbers of their sequences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...engine.sequence import Sequence as Seq
from .inverse_transform import integer_weights, inverse_transform, temperature_softmax
from .top_k_top_p import filter_weights, shortlist


def plan_draws(prefix: str, rows: Sequence[int], seqs: Sequence[Seq]) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of these rows, named `prefix`_*. Takes a random number from each row's sequence."""
    return {
        f"{prefix}_rows": np.array(rows),
        f"{prefix}_temperatures": np.array([seqs[row].params.temperature for row in rows]),
        f"{prefix}_random_numbers": np.array([seqs[row].random.random() for row in rows]),
    }


def draw(scores: torch.Tensor, best: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Draws one of all tokens per row of `scores` (rows, tokens), whose maxima are `best` (rows,)."""
    probabilities = temperature_softmax(scores, best, staged["drawn_temperatures"])
    return inverse_transform(integer_weights(probabilities), staged["drawn_random_numbers"])


def draw_filtered(scores: torch.Tensor, best: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Draws one of the tokens that `top_k` and `top_p` keep, per row.

    On two cores, for 16 rows of 32,003 tokens and `top_p` 0.9, this takes 3.5 ms, and 14 ms without a shortlist. A sort
    took 30 ms.
    """
    probabilities = temperature_softmax(scores, best, staged["filtered_temperatures"])
    random_numbers = staged["filtered_random_numbers"]
    ids = shortlist(scores, probabilities, staged) if scores.is_cpu else None
    if ids is None:
        return inverse_transform(filter_weights(scores, integer_weights(probabilities), staged), random_numbers)
    weights = filter_weights(scores.gather(1, ids), integer_weights(probabilities.gather(1, ids)), staged)
    return ids.gather(1, inverse_transform(weights, random_numbers)[:, None])[:, 0]
