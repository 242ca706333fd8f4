"""From a row of logits to a token.

The random draw comes from a generator of the sequence's own, on the CPU, so that a seed gives the same tokens on any
device and whoever else is generated beside it.
"""

import secrets

import torch

from .sequence import SamplingParams

GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15  # spreads the seeds of a request's sequences (Knuth, multiplicative hashing)


def generator(seed: int | None, index: int) -> torch.Generator:
    """The random numbers of the request's sequence `index`; without a seed, nobody's but its own."""
    seed = secrets.randbits(63) if seed is None else seed
    return torch.Generator().manual_seed((seed + index * GOLDEN_RATIO_64) % 2**63)


class Sampler:
    """Chooses the tokens of one sequence.

    `banned` ids are never chosen (added tokens: markers, not text); `eos_id` is not before `min_new_tokens` are out,
    and never where the request ignores it.
    """

    def __init__(self, params: SamplingParams, index: int, banned: torch.Tensor, eos_id: int) -> None:
        self._params = params
        self._banned = banned
        self._eos_id = eos_id
        self._generator = generator(params.seed, index)

    def __call__(self, logits: torch.Tensor, seen: torch.Tensor, num_generated: int) -> int:
        """The next token for `logits` (vocabulary,), given the ids so far, prompt included, `seen` (length,)."""
        params = self._params
        logits = logits.float()
        if params.repetition_penalty != 1.0:
            logits = _penalized(logits, seen, params.repetition_penalty)
        logits = self.without_banned(logits)
        if params.ignore_eos or num_generated < params.min_new_tokens:
            logits[self._eos_id] = -torch.inf
        if params.temperature == 0.0:
            return int(logits.argmax())
        probabilities = _filtered(logits.cpu() / params.temperature, params.top_k, params.top_p).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def without_banned(self, scores: torch.Tensor) -> torch.Tensor:
        """A copy of `scores` (vocabulary,) in which no added token can be the likeliest."""
        return scores.index_fill(0, self._banned, -torch.inf)


def _penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Every id that has occurred becomes less likely (CTRL, Keskar et al. 2019, arXiv:1909.05858, section 4.1)."""
    ids = torch.unique(seen)
    scores = logits[ids]
    return logits.index_put((ids,), torch.where(scores < 0, scores * penalty, scores / penalty))


def _filtered(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Keeps the `top_k` likeliest tokens, then the fewest of them whose probabilities reach `top_p`."""
    if 0 < top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        beyond[0] = False  # a top_p that is zero in float32 keeps the likeliest
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    return logits
