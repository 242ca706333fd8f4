"""One sequence's tokens as they become text, and the events about it to its request."""

from __future__ import annotations

from .completion import Completion, FinishReason, SampledToken, TokenLogprob
from .detokenizer import Detokenizer, StoppedText
from .request_handle import RequestHandle, TextDelta
from .sequence import Sequence
from .vocabulary import Vocabulary

# Text that arrives faster than this is sent together. A reader sees no difference, and every event wakes a thread and
# costs a system call.
SEND_INTERVAL_SECONDS = 0.02


class SequenceOutput:
    """The text of `seq`, which is sequence `index` of prompt `prompt_index` of the request `handle`.

    Times are in seconds of time.monotonic.
    """

    def __init__(
        self,
        seq: Sequence,
        vocabulary: Vocabulary,
        handle: RequestHandle,
        prompt_index: int,
        index: int,
        submitted_at: float,
    ) -> None:
        self.seq = seq
        self.handle = handle
        self._vocabulary = vocabulary
        self._prompt_index = prompt_index
        self._index = index
        self._submitted_at = submitted_at
        self._scheduled_at: float | None = None
        self._first_token_at: float | None = None
        self._sent_at = 0.0
        self._detokenizer = Detokenizer()
        self._text = StoppedText(seq.params.stop)
        self._logprobs: list[TokenLogprob] = []
        self._num_sent_logprobs = 0

    def schedule(self, now: float) -> None:
        """Records that the sequence is in a batch. The first call ends its time in the queue."""
        if self._scheduled_at is None:
            self._scheduled_at = now

    def push(self, sampled: SampledToken, now: float) -> FinishReason | None:
        """Appends a token to the sequence. Returns the finish reason if the sequence ends with it."""
        assert sampled.token is not None
        if self._first_token_at is None:
            self._first_token_at = now
        seq, token = self.seq, sampled.token
        seq.token_ids.append(token)
        if seq.params.logprobs is not None:
            self._logprobs.append(self._token_logprob(sampled))
        if token == self._vocabulary.eos_id:
            return "stop"
        piece = self._detokenizer.push(self._vocabulary.token_bytes(token))
        if self._text.push(piece, search=seq.num_generated >= seq.params.min_new_tokens):
            return "stop"
        return "length" if seq.num_generated >= seq.params.max_new_tokens else None

    def send_text(self, now: float) -> None:
        """Posts the new text to a streaming request, if the last text is old enough."""
        if self.handle.streaming and now >= self._sent_at + SEND_INTERVAL_SECONDS:
            self._sent_at = now
            self._post_text(self._text.emit())

    def finish(self, reason: FinishReason, now: float) -> None:
        """Posts the text that is left, then the Completion."""
        if not self._text.is_stopped:
            self._text.push(self._detokenizer.flush(), search=False)
        if self.handle.streaming:
            self._post_text(self._text.emit(final=True))
        self.handle.post(self._completion(reason, now))

    def _completion(self, reason: FinishReason, now: float) -> Completion:
        scheduled_at = now if self._scheduled_at is None else self._scheduled_at
        return Completion(
            prompt_index=self._prompt_index,
            index=self._index,
            text=self._text.text,
            token_ids=tuple(self.seq.token_ids[self.seq.num_prompt_tokens :]),
            finish_reason=reason,
            logprobs=tuple(self._logprobs),
            prompt_tokens=self.seq.num_prompt_tokens,
            cached_tokens=self.seq.cached_tokens or 0,
            queue_seconds=scheduled_at - self._submitted_at,
            ttft_seconds=None if self._first_token_at is None else self._first_token_at - self._submitted_at,
            total_seconds=now - self._submitted_at,
        )

    def _post_text(self, text: str) -> None:
        logprobs = tuple(self._logprobs[self._num_sent_logprobs :])
        self._num_sent_logprobs = len(self._logprobs)
        if text or logprobs:
            self.handle.post(TextDelta(self._prompt_index, self._index, text, logprobs))

    def _token_logprob(self, sampled: SampledToken) -> TokenLogprob:
        assert sampled.token is not None
        token_bytes = self._vocabulary.token_bytes
        alternatives = (TokenLogprob(token_bytes(i), logprob) for i, logprob in sampled.alternatives)
        return TokenLogprob(token_bytes(sampled.token), sampled.logprob, tuple(alternatives))
