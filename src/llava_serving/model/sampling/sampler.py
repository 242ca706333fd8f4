"""The sampler: plans a step on the host, and samples all of its rows on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...engine.sequence import Sequence as Seq
from .draw import draw, draw_filtered, plan_draws
from .radix_select import key_columns, rank_keys
from .repetition_penalty import RepetitionPenalty
from .row_selection import replace_rows, select_rows
from .sampled import Sampled
from .top_k_top_p import is_filtered, plan_filters


@dataclass(frozen=True)
class SamplingPlan:
    """What a step does besides taking the best token of each row.

    `arrays` are copied to the device. Each optional part of the step runs only if its arrays exist.
    `num_alternatives` is the number of alternatives of each row that requests log-probabilities, by ascending row.
    """

    arrays: dict[str, npt.NDArray[Any]]
    num_alternatives: dict[int, int]


class Sampler:
    """Chooses the next tokens of a batch.

    Ids from `text_vocab_size` on are never chosen: added tokens are markers, not text. `eos_id` is not chosen before
    `min_new_tokens` tokens are generated, and never if the request ignores it. Every plan must be executed, exactly
    once and in order, because RepetitionPenalty counts on it.
    """

    def __init__(self, text_vocab_size: int, eos_id: int, max_num_seqs: int, device: torch.device) -> None:
        self._text_vocab_size = text_vocab_size
        self._eos_id = eos_id
        self._penalty = RepetitionPenalty(text_vocab_size, max_num_seqs, device)

    def plan(self, seqs: Sequence[Seq]) -> SamplingPlan:
        """Plans a step with one row per sequence. Takes a random number from each sequence with a temperature."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        params = [seq.params for seq in seqs]
        if no_eos := [i for i, seq in enumerate(seqs) if _forbids_eos(seq)]:
            arrays["no_eos_rows"] = np.array(no_eos)
        if penalized := [i for i, p in enumerate(params) if p.repetition_penalty != 1.0]:
            arrays |= self._penalty.plan(penalized, [seqs[i] for i in penalized])
        drawn = [i for i, p in enumerate(params) if p.temperature > 0]
        if filtered := [i for i in drawn if is_filtered(params[i], self._text_vocab_size)]:
            arrays |= plan_draws("filtered", filtered, seqs)
            arrays |= plan_filters([params[i] for i in filtered], self._text_vocab_size)
        if drawn := [i for i in drawn if i not in filtered]:
            arrays |= plan_draws("drawn", drawn, seqs)
        num_alternatives = {i: p.logprobs for i, p in enumerate(params) if p.logprobs is not None}
        if num_alternatives:
            arrays["logprob_rows"] = np.array(list(num_alternatives))
        return SamplingPlan(arrays, num_alternatives)

    def __call__(self, logits: torch.Tensor, plan: SamplingPlan, staged: Mapping[str, torch.Tensor]) -> Sampled:
        """Samples from `logits` (rows, vocabulary), of any float type. `staged` is the plan's arrays on the device."""
        scores = self._scores(logits, staged)
        best, tokens = scores.max(-1)
        if "drawn_rows" in staged:
            rows = staged["drawn_rows"]
            tokens = replace_rows(tokens, rows, draw(select_rows(scores, rows), select_rows(best, rows), staged))
        if "filtered_rows" in staged:
            rows = staged["filtered_rows"]
            drawn = draw_filtered(select_rows(scores, rows), select_rows(best, rows), staged)
            tokens = replace_rows(tokens, rows, drawn)
        tokens = tokens.masked_fill(best - best != 0, -1)  # true for NaN, and for infinities because inf - inf is NaN
        if "penalized_rows" in staged:
            self._penalty.record(tokens, staged)
        if not plan.num_alternatives:
            return Sampled(tokens)
        return self._with_logprobs(tokens, logits, max(plan.num_alternatives.values()), staged["logprob_rows"])

    def _scores(self, logits: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the logits of text in float32, with penalties applied and with EOS at -inf where it is forbidden."""
        scores = logits[:, : self._text_vocab_size].float()
        if "penalized_rows" in staged:
            scores = self._penalty.apply(scores, staged)
        if "no_eos_rows" in staged:
            eos = scores[:, self._eos_id].index_fill(0, staged["no_eos_rows"], -torch.inf)
            scores = scores.select_scatter(eos, 1, self._eos_id)
        return scores

    def _with_logprobs(self, tokens: torch.Tensor, logits: torch.Tensor, count: int, rows: torch.Tensor) -> Sampled:
        """Adds log-probabilities under the model, over all tokens. Alternatives are text, the likeliest first."""
        logprobs = select_rows(logits, rows).float().log_softmax(-1)
        chosen = logprobs.gather(1, select_rows(tokens, rows)[:, None].clamp(min=0))[:, 0]
        if not count:
            return Sampled(tokens, chosen)
        keys = rank_keys(logprobs[:, : self._text_vocab_size])
        likeliest = keys.topk(min(count, self._text_vocab_size), largest=False).values
        ids = key_columns(likeliest, self._text_vocab_size)
        return Sampled(tokens, chosen, ids, logprobs.gather(1, ids))


def _forbids_eos(seq: Seq) -> bool:
    return seq.params.ignore_eos or seq.num_generated + seq.num_pending < seq.params.min_new_tokens
