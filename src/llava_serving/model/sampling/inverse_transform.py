"""Inverse transform sampling with integer weights, which gives the same token on every device."""

import torch

PROBABILITY_SCALE = 2.0**62  # the weight of probability 1, so that the weights of a row sum to less than 2**63


def temperature_softmax(scores: torch.Tensor, best: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Returns float64 probabilities of `scores` (rows, tokens), whose maxima are `best` (rows,)."""
    return (scores - best[:, None]).double().div_(temperatures[:, None]).softmax(-1)


def integer_weights(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns int64 weights. Their sums depend neither on the order of addition nor on zeros between them."""
    return (probabilities * PROBABILITY_SCALE).long()


def inverse_transform(weights: torch.Tensor, random_numbers: torch.Tensor) -> torch.Tensor:
    """Returns the column (rows,) in whose share of the row's total weight the row's number in [0, 1) falls."""
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    point = torch.minimum((random_numbers[:, None] * total).long(), total - 1)
    return torch.searchsorted(sums, point, right=True)[:, 0]
