"""Repetition penalties: tokens that a sequence contains become less likely."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...engine.sequence import Sequence as Seq
from .row_selection import replace_rows, select_rows


class RepetitionPenalty:
    """The penalty of CTRL (Keskar et al. 2019, arXiv:1909.05858, section 4.1), over a sequence's prompt and answer.

    The device stores which ids occur in a sequence, in `_seen[batch_index]`. The host fills it when the sequence first
    samples with this batch index. From then on, the device adds each token that it samples, whether or not the host
    knows it yet. Every plan must therefore be executed, exactly once and in order.
    """

    def __init__(self, vocab_size: int, max_num_seqs: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._seen = torch.zeros(max_num_seqs, vocab_size, dtype=torch.bool, device=device)
        # By batch index: the sequence's id and its number of tokens in _seen.
        self._seen_seqs: list[tuple[int, int] | None] = [None] * max_num_seqs

    def plan(self, rows: Sequence[int], seqs: Sequence[Seq]) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays of the logit rows `rows`, which are sampled for `seqs`."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "penalized_rows": np.array(rows),
            "penalties": np.array([seq.params.repetition_penalty for seq in seqs], dtype=np.float32),
            "seen_indices": np.array([seq.batch_index for seq in seqs]),
        }
        if new := [seq for seq in seqs if not self._has_seen(seq)]:
            arrays["new_seen_indices"] = np.array([seq.batch_index for seq in new])
            arrays["new_seen_positions"] = np.concatenate([self._seen_positions(seq) for seq in new])
        for seq in seqs:
            self._seen_seqs[seq.batch_index] = (seq.seq_id, seq.length + 1)
        return arrays

    def _has_seen(self, seq: Seq) -> bool:
        """Returns whether the device knows the tokens of `seq`.

        A preempted sequence may return to its batch index without its last token. Its number of tokens then differs.
        """
        return self._seen_seqs[seq.batch_index] == (seq.seq_id, seq.length)

    def _seen_positions(self, seq: Seq) -> npt.NDArray[Any]:
        """Returns the positions of the ids of `seq` in the flattened `_seen`."""
        assert not seq.num_pending, "only the device knows a token of this sequence"
        ids = np.array(seq.token_ids, dtype=np.int64)
        return seq.batch_index * self._vocab_size + ids[ids < self._vocab_size]

    def apply(self, scores: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns `scores` (rows, vocabulary) with those of all ids that have occurred lowered."""
        if "new_seen_indices" in staged:
            self._seen.index_fill_(0, staged["new_seen_indices"], False)
            self._seen.view(-1).index_fill_(0, staged["new_seen_positions"], True)
        rows = select_rows(scores, staged["penalized_rows"])
        seen, penalties = self._seen.index_select(0, staged["seen_indices"]), staged["penalties"][:, None]
        penalized = torch.where(rows < 0, rows * penalties, rows / penalties)
        return replace_rows(scores, staged["penalized_rows"], torch.where(seen, penalized, rows))

    def record(self, tokens: torch.Tensor, staged: Mapping[str, torch.Tensor]) -> None:
        """Adds the sampled `tokens` (rows,) to what their sequences have seen.

        A token of -1 is recorded as 0, which has no effect because its sequence ends.
        """
        ids = tokens.index_select(0, staged["penalized_rows"]).clamp_(min=0)
        self._seen.view(-1).index_fill_(0, staged["seen_indices"] * self._vocab_size + ids, True)
