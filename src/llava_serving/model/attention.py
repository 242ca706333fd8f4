"""The interface between the decoder layers and the attention of a device.

An `Attention` belongs to one KVCache. Once per step, `plan` turns block tables into arrays on the host. The runner
copies these arrays to the device. Then `bind` returns the function that every layer calls. This function rotates
queries and keys, writes keys and values into the cache, and computes attention.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .kv_cache import BLOCK_SIZE


@dataclass(frozen=True)
class TokenRange:
    """The tokens of one sequence that run in a step: positions `start` to `end`, which attend to all positions before.

    `block_table` lists the sequence's blocks in the order of its positions.
    """

    seq_id: int
    start: int
    end: int
    block_table: list[int]

    @property
    def num_blocks(self) -> int:
        return -(-self.end // BLOCK_SIZE)

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


# (layer index, heads) -> attention output (tokens, query heads, head size). `heads` (tokens, query + key + value heads,
# head size) are the layer's projections before rotation. The function may overwrite them.
Attend = Callable[[int, torch.Tensor], torch.Tensor]


class AttentionPlan(Protocol):
    """One step's attention: `arrays` are copied to the device, and `bind` receives the copies by the same names."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend: ...


class Attention(Protocol):
    """The attention of a device.

    With `needs_cleared_blocks`, it reads blocks to their end, beyond what their sequence has written.
    """

    needs_cleared_blocks: bool

    def plan(self, ranges: list[TokenRange]) -> AttentionPlan:
        """Plans a step of these ranges: first those of one token (decode), by ascending `end`, then prompt chunks."""
        ...


def split_phases(ranges: list[TokenRange]) -> tuple[list[TokenRange], list[TokenRange]]:
    """Splits the ranges of a step into those of one token (decode), which come first, and the prompt chunks."""
    num_decoding = sum(tokens.num_tokens == 1 for tokens in ranges)
    return ranges[:num_decoding], ranges[num_decoding:]


def slot_mapping(ranges: list[TokenRange]) -> np.ndarray:
    """Returns the cache slot of every token of the ranges, int64: block * BLOCK_SIZE + offset in the block."""
    slots: list[int] = []
    for tokens in ranges:
        position = tokens.start
        while position < tokens.end:
            offset = position % BLOCK_SIZE
            count = min(BLOCK_SIZE - offset, tokens.end - position)
            slot = tokens.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + offset
            slots.extend(range(slot, slot + count))
            position += count
    return np.array(slots, dtype=np.int64)


def token_positions(ranges: list[TokenRange]) -> np.ndarray:
    """Returns the position in its sequence of every token of the ranges, int64."""
    return np.array([position for tokens in ranges for position in range(tokens.start, tokens.end)], dtype=np.int64)
