"""From rows of logits to a token each, every row by its own sequence's parameters."""

from collections.abc import Sequence as Rows

import torch

from ..engine.sequence import SampledToken, SamplingParams, Sequence


class Sampler:
    """Chooses the next tokens of a batch.

    Ids from `text_vocab_size` on are never chosen: added tokens are markers, not text. `eos_id` is not chosen before
    `min_new_tokens` are out, and never where the request ignores it.
    """

    def __init__(self, text_vocab_size: int, eos_id: int) -> None:
        self._text_vocab_size = text_vocab_size
        self._eos_id = eos_id

    def __call__(self, logits: torch.Tensor, seqs: Rows[Sequence]) -> list[SampledToken]:
        """`logits` (sequences, vocabulary), of any float type, are those of each sequence's last token."""
        logits = logits.float()
        scores = logits[:, : self._text_vocab_size]
        scores = self._penalized(scores, seqs)
        if endless := [i for i, seq in enumerate(seqs) if _must_go_on(seq)]:
            scores = scores.clone() if scores.data_ptr() == logits.data_ptr() else scores
            scores[endless, self._eos_id] = -torch.inf
        best = scores.max(-1)
        tokens: list[int | None] = best.indices.tolist()
        if drawn := [i for i, seq in enumerate(seqs) if seq.params.temperature > 0]:
            # What is cut off is found by sorting, which rows that ask for none of it are spared.
            if cut := [i for i in drawn if _is_filtered(seqs[i].params)]:
                scores = scores.index_put(
                    (torch.tensor(cut, device=scores.device),), _filtered(scores[cut], [seqs[i] for i in cut])
                )
            for i, token in zip(drawn, _draw(scores[drawn], [seqs[i] for i in drawn]), strict=True):
                tokens[i] = token
        for i, value in enumerate(best.values.tolist()):
            if not -torch.inf < value < torch.inf:
                tokens[i] = None
        return [self._told(logits[i], seq.params, tokens[i]) for i, seq in enumerate(seqs)]

    def _told(self, logits: torch.Tensor, params: SamplingParams, token: int | None) -> SampledToken:
        if params.logprobs is None or token is None:
            return SampledToken(token)
        logprobs = logits.log_softmax(-1)
        likeliest = logprobs[: self._text_vocab_size].topk(params.logprobs)
        alternatives = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return SampledToken(token, float(logprobs[token]), tuple(alternatives))

    def _penalized(self, scores: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
        """Every id that has occurred becomes less likely (CTRL, Keskar et al. 2019, arXiv:1909.05858, section 4.1)."""
        penalized = [i for i, seq in enumerate(seqs) if seq.params.repetition_penalty != 1.0]
        if penalized:
            scores = scores.clone()
        for i in penalized:
            seen = {token for token in seqs[i].token_ids if token < self._text_vocab_size}
            ids = torch.tensor(sorted(seen), dtype=torch.long, device=scores.device)
            penalty, row = seqs[i].params.repetition_penalty, scores[i, ids]
            scores[i, ids] = torch.where(row < 0, row * penalty, row / penalty)
        return scores


def _must_go_on(seq: Sequence) -> bool:
    return seq.params.ignore_eos or seq.num_generated < seq.params.min_new_tokens


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_p < 1 or params.top_k > 0


def _draw(scores: torch.Tensor, seqs: Rows[Sequence]) -> list[int]:
    """One token a row by inverse transform sampling: a number in [0, 1) falls into some token's part of the sum."""
    temperatures = _column([seq.params.temperature for seq in seqs], scores)
    numbers = _column([seq.random.random() for seq in seqs], scores)
    logits = (scores - scores.max(-1, keepdim=True).values) / temperatures
    sums = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    whole = sums[:, -1:]  # which rounding leaves a little off 1
    below = torch.minimum(numbers * whole, whole.nextafter(torch.zeros_like(whole)))
    tokens: list[int] = torch.searchsorted(sums, below, right=True).flatten().tolist()
    return tokens


def _filtered(scores: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Keeps the `top_k` likeliest tokens, then the fewest of them whose probabilities reach `top_p`."""
    vocab_size = scores.shape[-1]
    top_k = _column([seq.params.top_k or vocab_size for seq in seqs], scores)
    top_p = _column([seq.params.top_p for seq in seqs], scores)
    temperatures = _column([seq.params.temperature for seq in seqs], scores)
    ordered, order = scores.sort(descending=True, stable=True)
    beyond = torch.arange(vocab_size, device=scores.device) >= top_k
    probabilities = ((ordered - ordered[:, :1]) / temperatures).masked_fill(beyond, -torch.inf).softmax(-1)
    beyond |= probabilities.cumsum(-1) - probabilities >= top_p
    beyond[:, 0] = False  # a top_p that is zero in float32 keeps the likeliest
    return scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
