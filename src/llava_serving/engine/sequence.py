"""The state of one sequence: its tokens, its KV cache blocks, and the hashes of its full blocks."""

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
    """A prompt and its continuation. Sequences with a lower `seq_id` arrived earlier.

    The keys and values of the first `num_computed` tokens lie in the blocks of `block_table`. The other tokens must
    still run.
    """

    seq_id: int
    token_ids: list[int]
    images: tuple[PromptImage, ...]
    params: SamplingParams
    random: random.Random
    cache_salt: bytes = b""  # sequences share cached blocks only if their salts are equal
    num_computed: int = 0
    num_pending: int = 0  # tokens that the device samples or has sampled, and that the host has not read yet
    batch_index: int = 0  # its row in the device's per-sequence buffers while it runs
    cached_tokens: int | None = None  # prompt tokens that the prefix cache held at the first admission
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Counts the tokens that the host knows."""
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Counts the generated tokens that the host knows."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def length(self) -> int:
        """Counts all tokens, the pending ones included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_uncomputed(self) -> int:
        return self.length - self.num_computed

    @property
    def has_last_token(self) -> bool:
        """Whether the request allows no token after the pending ones."""
        return self.length - self.num_prompt_tokens >= self.params.max_new_tokens

    def images_between(self, start: int, end: int) -> Iterator[PromptImage]:
        """Yields the images that overlap the positions `start` to `end`."""
        return (image for image in self.images if image.start < end and start < image.start + image.length)

    def hash_blocks(self, count: int, block_size: int) -> list[bytes]:
        """Returns the hashes of the first `count` blocks, which must be full.

        The hash of a block covers everything that its keys and values depend on: all tokens and images up to its end.
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
    """Returns the random numbers of sequence `index` of a prompt. Without a seed they differ in every request.

    The host draws one number per token. A seed therefore gives the same tokens on every device and in every batch.
    """
    seed = secrets.randbits(63) if seed is None else seed
    return random.Random((seed + index * GOLDEN_RATIO_64) % 2**64)
