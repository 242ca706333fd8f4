"""The seam between the model's layers and a device's attention kernels.

A backend is made for a KVCache. `plan` runs on the host once a step and turns block tables into arrays; once they are
staged on the device, `bind` gives the function that every layer calls. It rotates queries and keys, writes keys and
values into the cache, and attends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .kv_cache import BLOCK_SIZE


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence in a step: positions `start` to `end`, which attend to all before them."""

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


# (layer, heads) -> attention's output (tokens, query heads, head size); `heads` (tokens, query + key + value heads,
# head size) are the layer's projections before rotation, and may be overwritten.
Attend = Callable[[int, torch.Tensor], torch.Tensor]


class Plan(Protocol):
    """A step's attention on the host: `arrays` go to the device, and `bind` takes them there."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...

    def bind(self, staged: Mapping[str, torch.Tensor]) -> Attend: ...


class Attention(Protocol):
    """A device's backend. With `needs_cleared_blocks`, it reads blocks beyond what their sequence has written."""

    needs_cleared_blocks: bool

    def plan(self, spans: list[Span]) -> Plan:
        """For a step of these spans: those of one token (decode) first, by ascending `end`."""
        ...


def slots_of(spans: list[Span]) -> np.ndarray:
    """The slot of every token of the spans, int64: block * BLOCK_SIZE + offset."""
    slots: list[int] = []
    for span in spans:
        position = span.start
        while position < span.end:
            offset = position % BLOCK_SIZE
            count = min(BLOCK_SIZE - offset, span.end - position)
            slot = span.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + offset
            slots.extend(range(slot, slot + count))
            position += count
    return np.array(slots, dtype=np.int64)


def positions_of(spans: list[Span]) -> np.ndarray:
    """The position in its sequence of every token of a step, int64."""
    return np.array([position for span in spans for position in range(span.start, span.end)], dtype=np.int64)


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves paired as in transformers (RoFormer, Su et al. 2021, arXiv:2104.09864)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
