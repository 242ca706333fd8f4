"""What comes out of the engine: tokens, their log-probabilities and finished sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class SampledToken:
    """`token` is None where the logits were no numbers. `logprob` and `alternatives` (id, value) are as asked for."""

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
    """One finished sequence; times in seconds from its submission.

    `text` is cut before the stop string; `token_ids` is every token generated, EOS included. `cached_tokens` of the
    prompt were found in the prefix cache. `ttft_seconds` is None where no token was made.
    """

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
        """Time per output token after the first."""
        if self.ttft_seconds is None or self.num_tokens < 2:
            return None
        return (self.total_seconds - self.ttft_seconds) / (self.num_tokens - 1)
