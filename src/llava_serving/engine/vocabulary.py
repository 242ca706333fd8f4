"""The few facts about a tokenizer that the engine and the sampler need."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: how many are text, which one ends a text, and the bytes that each adds.

    Ids from `text_size` on are added tokens. They are markers in a prompt, and the sampler never chooses one.
    `token_bytes` returns the UTF-8 bytes of an id; one token may hold a part of a character.
    """

    text_size: int
    eos_id: int
    token_bytes: Callable[[int], bytes]
