"""Attention for a CPU without compiled kernels: it groups sequences, and saves the gathered keys of decoding groups
from step to step."""

from dataclasses import dataclass

import torch

from .attention import TokenRange, slot_mapping, split_phases, token_positions
from .gathered_attention import GatherBuffer, GatheredAttention, SequenceGroup
from .kv_cache import BLOCK_SIZE, KVCache


@dataclass(frozen=True)
class _SavedGather:
    """The keys and values that a decoding group gathered in the last step, up to position `ends` of each sequence."""

    ends: list[int]
    num_blocks: int
    buffer: GatherBuffer

    def continues_with(self, ranges: list[TokenRange]) -> bool:
        """Returns whether each sequence has grown only by its token of this step, and still fits the buffer's rows."""
        return self.num_blocks == ranges[-1].num_blocks and self.ends == [tokens.start for tokens in ranges]


SavedGathers = dict[tuple[int, ...], _SavedGather]  # by the group's sequence ids


class CpuAttention:
    """Groups decoding sequences so that the keys of a group stay in the processor's cache."""

    # Keys gathered at a time. They should still be in the processor's cache when they are read back.
    MAX_GROUP_BYTES = 4 * 1024 * 1024
    # Gathered keys and values of decoding sequences that are saved from step to step.
    MAX_SAVED_BYTES = 1024 * 1024 * 1024
    # Masked positions have weight 0, but 0 x stale NaN is NaN.
    needs_cleared_blocks = True

    def __init__(self, cache: KVCache, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """`cos` and `sin` (context, head size)."""
        self._cache = cache
        self._cos, self._sin = cos, sin
        one_block = cache.keys[0][:, 0]
        self._dtype = one_block.dtype
        block_bytes = one_block.numel() * one_block.element_size()
        self._max_group_blocks = max(1, self.MAX_GROUP_BYTES // block_bytes)
        self._max_saved_blocks = self.MAX_SAVED_BYTES // (2 * len(cache.keys) * block_bytes)
        self._shared_buffer = GatherBuffer(1)
        self._saved: SavedGathers = {}

    def plan(self, ranges: list[TokenRange]) -> GatheredAttention:
        decode_ranges, prompt_chunks = split_phases(ranges)
        decoding = self._decoding_groups(decode_ranges)
        prefills, first = [], len(decode_ranges)
        for tokens in prompt_chunks:
            prefills.append(self._prefill_group(tokens, first))
            first += tokens.num_tokens
        positions = torch.from_numpy(token_positions(ranges))
        slots = torch.from_numpy(slot_mapping(ranges))
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        return GatheredAttention(self._cache, slots, cos, sin, decoding, prefills)

    def _decoding_groups(self, ranges: list[TokenRange]) -> list[SequenceGroup]:
        groups: list[SequenceGroup] = []
        previous, self._saved = self._saved, {}
        start = gathered_blocks = 0
        for stop in range(1, len(ranges) + 1):
            # Ranges are sorted by length, so the last of a group is its longest, and the others need little padding.
            if stop == len(ranges) or ranges[stop].num_blocks * (stop + 1 - start) > self._max_group_blocks:
                gathered_blocks += ranges[stop - 1].num_blocks * (stop - start)
                if gathered_blocks <= self._max_saved_blocks:
                    groups.append(self._saved_group(ranges[start:stop], start, previous))
                else:
                    groups.append(self._decoding_group(ranges[start:stop], start, self._shared_buffer))
                start = stop
        return groups

    def _saved_group(self, ranges: list[TokenRange], first: int, previous: SavedGathers) -> SequenceGroup:
        """Takes the group's gathered keys out of `previous`, the last step's, and saves this step's."""
        key = tuple(tokens.seq_id for tokens in ranges)
        saved = previous.pop(key, None)
        if saved is not None:
            buffer = saved.buffer
        else:  # reuse the memory of another group of the last step, if one is left; that group gathers again
            buffer = previous.popitem()[1].buffer if previous else GatherBuffer(len(self._cache.keys))
        self._saved[key] = _SavedGather([tokens.end for tokens in ranges], ranges[-1].num_blocks, buffer)
        return self._decoding_group(ranges, first, buffer, saved is not None and saved.continues_with(ranges))

    def _decoding_group(
        self, ranges: list[TokenRange], first: int, buffer: GatherBuffer, is_gathered: bool = False
    ) -> SequenceGroup:
        """Returns the group whose first token has index `first` among the tokens of the step.

        `is_gathered` says that `buffer` holds all keys before the step's own.
        """
        num_blocks, null_block = ranges[-1].num_blocks, self._cache.null_block
        tables = [(tokens.block_table + [null_block] * num_blocks)[:num_blocks] for tokens in ranges]
        blocks = torch.tensor([block for table in tables for block in table])
        ends = torch.tensor([tokens.end for tokens in ranges])
        mask = self._mask(torch.arange(num_blocks * BLOCK_SIZE) >= ends[:, None, None])
        new_positions = ends - 1 if is_gathered else None
        return SequenceGroup(slice(first, first + len(ranges)), len(ranges), blocks, mask, buffer, new_positions)

    def _prefill_group(self, tokens: TokenRange, first: int) -> SequenceGroup:
        positions = torch.arange(tokens.start, tokens.end)
        mask = self._mask(torch.arange(tokens.num_blocks * BLOCK_SIZE) > positions[:, None])
        blocks = torch.tensor(tokens.block_table[: tokens.num_blocks])
        return SequenceGroup(slice(first, first + len(positions)), 1, blocks, mask, self._shared_buffer)

    def _mask(self, is_masked: torch.Tensor) -> torch.Tensor:
        return torch.zeros(is_masked.shape, dtype=self._dtype).masked_fill_(is_masked, -torch.inf)
