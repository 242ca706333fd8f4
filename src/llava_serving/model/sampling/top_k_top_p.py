"""The filters top-k and top-p (nucleus sampling)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...engine.prompt import SamplingParams
from .inverse_transform import PROBABILITY_SCALE, integer_weights
from .radix_select import cutoff_keys, rank_keys

NO_TOP_K, NO_TOP_P = 2**31, 1.5  # these values keep every token
SHORTLIST_SIZES = (128, 500)  # the filters mostly keep fewer tokens


def is_filtered(params: SamplingParams, vocab_size: int) -> bool:
    return params.top_p < 1 or 0 < params.top_k < vocab_size


def plan_filters(params: Sequence[SamplingParams], vocab_size: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of the filters. An array is missing if no row uses its filter.

    If only some rows use a filter, it keeps every token of the others.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    top_k = [p.top_k if 0 < p.top_k < vocab_size else NO_TOP_K for p in params]
    if min(top_k) < NO_TOP_K:
        arrays["top_k"] = np.array(top_k)
    top_p = [p.top_p if p.top_p < 1 else NO_TOP_P for p in params]
    if min(top_p) < NO_TOP_P:
        arrays["top_p"] = np.array(top_p)
    return arrays


def filter_weights(scores: torch.Tensor, weights: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns `weights` (rows, tokens) with those of removed tokens set to 0.

    `top_k` keeps the likeliest tokens. Of these, `top_p` keeps the fewest whose weights reach the share `top_p` of the
    weights of all of these. Of equally likely tokens, those with lower ids are kept. The likeliest token is never
    removed.
    """
    keys = rank_keys(scores)
    total: torch.Tensor | float = PROBABILITY_SCALE
    if "top_k" in staged:
        top_k = staged["top_k"][:, None]
        weights = weights.masked_fill(keys > cutoff_keys(keys, torch.ones_like(weights), top_k), 0)
        total = weights.sum(-1, keepdim=True).double().masked_fill(top_k == NO_TOP_K, PROBABILITY_SCALE)
    if "top_p" in staged:
        weights = weights.masked_fill(keys > cutoff_keys(keys, weights, _top_p_weight(total, staged["top_p"])), 0)
    return weights


def shortlist(
    scores: torch.Tensor, probabilities: torch.Tensor, staged: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """Returns the ascending ids (rows, ids) of the likeliest tokens if they include all that the filters keep.

    Returns None if no shortlist does. The branch reads values of tensors, which costs nothing only where the host is
    the device.
    """
    for size in SHORTLIST_SIZES:
        if size < scores.shape[-1]:
            likeliest = scores.topk(size, sorted=False)
            if bool(_includes_kept(likeliest.values, probabilities.gather(1, likeliest.indices), staged).all()):
                return likeliest.indices.sort().values
    return None


def _includes_kept(
    scores: torch.Tensor, probabilities: torch.Tensor, staged: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Returns whether (rows, 1) the filters keep no token besides these likeliest ones.

    The tokens with the lowest of these scores do not count, because equally likely tokens may be missing.
    """
    counts = scores > scores.amin(-1, keepdim=True)
    includes_kept = torch.zeros(len(scores), 1, dtype=torch.bool)
    if "top_p" in staged:
        weights = integer_weights(probabilities).masked_fill_(~counts, 0)
        includes_kept = weights.sum(-1, keepdim=True) >= _top_p_weight(PROBABILITY_SCALE, staged["top_p"])
    if "top_k" in staged:
        top_k = staged["top_k"][:, None]
        includes_kept = torch.where(top_k == NO_TOP_K, includes_kept, counts.sum(-1, keepdim=True) >= top_k)
    return includes_kept


def _top_p_weight(total: torch.Tensor | float, top_p: torch.Tensor) -> torch.Tensor:
    """Returns the weight (rows, 1) that is the share `top_p` of `total`, at least 1 so that a token is kept."""
    return (top_p[:, None] * total).ceil().long().clamp_(min=1)
