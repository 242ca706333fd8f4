"""What a caller puts into the engine: token ids, images, and how to continue them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the engine itself needs no torch
    import torch


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
class PromptImage:
    """A picture in a prompt: `pixels` (3, height, width) float32, at positions `start` to `start + length`."""

    start: int
    length: int
    digest: bytes  # of the pixels: what the caches know it by
    pixels: torch.Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class EnginePrompt:
    """One prompt: ids with the image tokens in place, and the images in order."""

    token_ids: tuple[int, ...]
    images: tuple[PromptImage, ...]
    params: SamplingParams
