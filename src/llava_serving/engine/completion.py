"""What comes out of the engine: sampled tokens, log-probabilities and finished sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class SampledToken:
    """One sampled token id, or None where the logits were not finite.

    `logprob` and `alternatives`, pairs of (id, log-probability), are set only if the request asks for them.
    """

    token: int | None
    logprob: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and its natural log-probability under the model, before temperature and filters."""

    token: bytes
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished sequence: number `index` of the `n` sequences of prompt `prompt_index`.

    `text` ends before the stop string. `token_ids` holds every generated token, EOS included. `cached_tokens` counts
    the prompt's tokens that the prefix cache held. Times are in seconds from submission; `ttft_seconds` is None if no
    token was generated.
    """

    prompt_index: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    prompt_tokens: int
    cached_tokens: int
    queue_seconds: float
    ttft_seconds: float | None
    total_seconds: float

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if self.ttft_seconds is None or self.num_tokens < 2:
            return None
        return (self.total_seconds - self.ttft_seconds) / (self.num_tokens - 1)


@dataclass(frozen=True)
class Usage:
    """The token counts of several completions. The prompt of several sequences counts once, as OpenAI counts."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> Usage:
        by_prompt = {completion.prompt_index: completion for completion in reversed(completions)}
        return cls(
            sum(completion.prompt_tokens for completion in by_prompt.values()),
            sum(completion.cached_tokens for completion in by_prompt.values()),
            sum(completion.num_tokens for completion in completions),
        )
