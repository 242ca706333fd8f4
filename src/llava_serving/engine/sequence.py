"""The state of one sequence: its tokens, its blocks of the KV cache, and the hashes of its full blocks."""

from __future__ import annotations

import hashlib
import random
import secrets
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from .prompt import PromptImage, SamplingParams

GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15  # spreads the seeds of a request's sequences (Knuth, multiplicative hashing)


@dataclass(eq=False)
class Sequence:
    """A prompt being continued. `seq_id` is its place in the order of arrival.

    `num_computed` leading tokens have their keys and values in the blocks of `block_table`; the rest must run.
    """

    seq_id: int
    token_ids: list[int]
    images: tuple[PromptImage, ...]
    params: SamplingParams
    random: random.Random
    cache_salt: bytes = b""  # sequences share cached blocks where their roots are equal
    num_computed: int = 0
    num_pending: int = 0  # tokens that the device samples or has sampled, and the host does not know yet
    batch_index: int = 0  # its row of the device's per-sequence buffers while it runs
    cached_tokens: int | None = None  # of the prompt, found in the cache when it was first admitted
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Of the tokens that the host knows."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def length(self) -> int:
        """Tokens, those included that only the device knows."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_uncomputed(self) -> int:
        return self.length - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """The next step runs one token and samples: prefill, after a preemption too, is behind it."""
        return self.length > self.num_prompt_tokens and self.num_uncomputed == 1

    @property
    def has_last_token(self) -> bool:
        """The token that only the device knows is the last that the request asks for."""
        return self.length - self.num_prompt_tokens >= self.params.max_new_tokens

    def images_between(self, start: int, end: int) -> Iterator[PromptImage]:
        """The images of which a part lies at positions `start` to `end`."""
        return (image for image in self.images if image.start < end and start < image.start + image.length)

    def hash_blocks(self, count: int, block_size: int) -> list[bytes]:
        """The hashes of the first `count` blocks, which must be full.

        A block's hash covers all that its keys and values depend on: every token and image up to its end.
        """
        assert count * block_size <= len(self.token_ids)
        for index in range(len(self.block_hashes), count):
            start, end = index * block_size, (index + 1) * block_size
            block = hashlib.blake2b(self.block_hashes[-1] if index else self.cache_salt, digest_size=16)
            block.update(array("q", self.token_ids[start:end]).tobytes())
            for image in self.images_between(start, end):
                block.update(image.digest + (image.start - start).to_bytes(8, "little", signed=True))
            self.block_hashes.append(block.digest())
        return self.block_hashes[:count]


def random_numbers(seed: int | None, index: int) -> random.Random:
    """The random numbers of a request's sequence `index`; without a seed, nobody's but its own.

    On the host and drawn one a token, so that a seed gives the same tokens on any device, whoever is beside it.
    """
    seed = secrets.randbits(63) if seed is None else seed
    return random.Random((seed + index * GOLDEN_RATIO_64) % 2**64)
