"""The values that go into the engine and come out of it. No torch computation here."""

from dataclasses import dataclass
from typing import Literal

import torch

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued.

    `temperature` 0 is greedy, whatever else is set; `top_p` 1 and `top_k` 0 are off. `stop` strings end the text and
    are not part of it. `logprobs` is the number of alternatives reported beside each token (0: the token alone), None
    for none.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True)
class Submission:
    """One prompt: ids with the image tokens in place, and the images, (images, 3, height, width) float32 or None."""

    token_ids: tuple[int, ...]
    pixel_values: torch.Tensor | None
    params: SamplingParams


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and its natural log-probability under the model, before temperature and filters."""

    token: bytes
    logprob: float
    alternatives: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sequence. `text` is cut before the stop string; `token_ids` is every token generated, EOS included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Generation:
    """The `n` completions of one submission; times in seconds from its submission."""

    completions: tuple[Completion, ...]
    prompt_tokens: int
    queue_seconds: float
    ttft_seconds: float
    total_seconds: float
