"""What goes into the engine: token ids, images, and how to continue them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the engine itself needs no torch
    import torch


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued.

    `temperature` 0 is greedy, and then the other sampling parameters have no effect. `top_p` 1 and `top_k` 0 are off.
    A string of `stop` ends the text and is not part of it. `logprobs` is the number of alternatives that are reported
    beside each token; 0 reports the token alone, and None reports nothing.
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
    """An image in a prompt: `pixels` (3, height, width) float32, at token positions `start` to `start + length`.

    `digest` is a hash of the pixels. The prefix cache and the image cache compare images by it.
    """

    start: int
    length: int
    digest: bytes
    pixels: torch.Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class EnginePrompt:
    """One prompt: its ids, image tokens included, and its images in order."""

    token_ids: tuple[int, ...]
    images: tuple[PromptImage, ...]
    params: SamplingParams
