"""One sequence's tokens as they become text, and where they end."""

from __future__ import annotations

from collections.abc import Callable

from .completion import Completion, FinishReason, SampledToken, TokenLogprob
from .detokenizer import Detokenizer, StopText
from .sequence import Sequence


class Output:
    """What a sequence has generated so far. Times in seconds of the engine's clock."""

    def __init__(self, seq: Sequence, token_bytes: Callable[[int], bytes], eos_id: int, submitted: float) -> None:
        self._seq = seq
        self._token_bytes = token_bytes
        self._eos_id = eos_id
        self._submitted = submitted
        self._detokenizer = Detokenizer()
        self._text = StopText(seq.params.stop)
        self._logprobs: list[TokenLogprob] = []
        self._num_told = 0
        self._started: float | None = None
        self._first_token: float | None = None

    def start(self, now: float) -> None:
        """The sequence is in a batch; the first time ends its time in the queue."""
        if self._started is None:
            self._started = now

    def push(self, sampled: SampledToken, now: float) -> FinishReason | None:
        """Appends a token to the sequence; why the sequence ends with it, if it does."""
        assert sampled.token is not None
        params, token = self._seq.params, sampled.token
        if self._first_token is None:
            self._first_token = now
        self._seq.token_ids.append(token)
        if params.logprobs is not None:
            alternatives = (TokenLogprob(self._token_bytes(i), value) for i, value in sampled.alternatives)
            self._logprobs.append(TokenLogprob(self._token_bytes(token), sampled.logprob, tuple(alternatives)))
        if token == self._eos_id:
            return "stop"
        piece = self._detokenizer.push(self._token_bytes(token))
        if self._text.push(piece, searching=self._seq.num_generated >= params.min_new_tokens):
            return "stop"
        return "length" if self._seq.num_generated >= params.max_new_tokens else None

    def settle(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Text that stays, and the tokens' logprobs, since the last call."""
        return self._text.settle(), self._new_logprobs()

    def finish(self, reason: FinishReason, now: float) -> tuple[str, tuple[TokenLogprob, ...], Completion]:
        """What was not settled yet, and the whole."""
        if not self._text.stopped:
            self._text.push(self._detokenizer.flush(), searching=False)
        completion = Completion(
            text=self._text.text,
            token_ids=tuple(self._seq.token_ids[self._seq.num_prompt_tokens :]),
            finish_reason=reason,
            logprobs=tuple(self._logprobs),
            prompt_tokens=self._seq.num_prompt_tokens,
            cached_tokens=self._seq.cached_tokens or 0,
            queue_seconds=(now if self._started is None else self._started) - self._submitted,
            ttft_seconds=None if self._first_token is None else self._first_token - self._submitted,
            total_seconds=now - self._submitted,
        )
        return self._text.settle(final=True), self._new_logprobs(), completion

    def _new_logprobs(self) -> tuple[TokenLogprob, ...]:
        new = tuple(self._logprobs[self._num_told :])
        self._num_told = len(self._logprobs)
        return new
