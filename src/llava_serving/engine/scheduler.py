"""Which sequences run in the next step, and how many of their tokens.

First come, first served: whoever runs came before whoever waits. Decoding sequences are served first in every step,
prefill takes what is left of the step's tokens, so that a long prompt does not stall those who are reading their
answers (chunked prefill: Sarathi-Serve, Agrawal et al. 2024, arXiv:2403.02310). When blocks run out the latest to
come is preempted: its blocks are freed and its tokens computed again later. The oldest sequence is never preempted
for another, so each one ends. Knows no tensors, text, clocks or callers.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .block_manager import BlockManager
from .sequence import Sequence
from .stats import Stats


@dataclass(frozen=True)
class Scheduled:
    """`seq`'s tokens `start` to `end` run; with `samples`, the last of them is sampled from."""

    seq: Sequence
    start: int
    end: int
    samples: bool

    @classmethod
    def next_of(cls, seq: Sequence, num_tokens: int) -> "Scheduled":
        """The `num_tokens` tokens after those that are computed."""
        end = seq.num_computed + num_tokens
        return cls(seq, seq.num_computed, end, end == seq.length)

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Batch:
    """One step's work. `new_blocks` hold another sequence's leftovers."""

    scheduled: list[Scheduled]
    new_blocks: list[int]

    @property
    def num_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.scheduled)


class Scheduler:
    """Holds the sequences from `add` to `remove`."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int, stats: Stats) -> None:
        assert max_num_batched_tokens >= max_num_seqs >= 1, "each running sequence needs a token in every step"
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._stats = stats
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_batch_indices = list(range(max_num_seqs))
        self._new_blocks: list[int] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, seq: Sequence, max_num_tokens: int) -> None:
        """Queues a sequence that will grow to `max_num_tokens` at most, which must fit the cache."""
        assert self._blocks.blocks_for(max_num_tokens) <= self._blocks.num_blocks, (
            f"a sequence of {max_num_tokens} tokens never fits {self._blocks.num_blocks} blocks"
        )
        assert not self._waiting or self._waiting[-1].seq_id < seq.seq_id, "sequences come in order"
        self._waiting.append(seq)
        self._count()

    def remove(self, seq: Sequence) -> None:
        """Ends a sequence wherever it is; its blocks are free from now on."""
        if seq in self._running:
            self._running.remove(seq)
            self._free_batch_indices.append(seq.batch_index)
        else:
            self._waiting.remove(seq)
        self._free(seq)
        self._count()

    def schedule(self) -> Batch:
        """The next step; empty when there is nothing to run. `advance` must follow once it is launched."""
        self._new_blocks = []
        scheduled: dict[int, Scheduled] = {}
        preempted = self._schedule_running(scheduled)
        for entry in scheduled.values():
            self._cache_full_blocks(entry)
        if not preempted:
            self._admit(scheduled)
        self._count()
        return Batch(list(scheduled.values()), self._new_blocks)

    def advance(self, batch: Batch) -> None:
        """The batch is launched: whatever is launched after it finds its tokens' keys and values in the cache."""
        for entry in batch.scheduled:
            entry.seq.num_computed = entry.end
            entry.seq.num_pending += entry.samples
        self._stats.steps += 1
        self._stats.scheduled_seqs += len(batch.scheduled)
        self._stats.scheduled_tokens += batch.num_tokens

    def reset_prefix_cache(self) -> None:
        """After a step that failed: what it left in blocks is unknown, and must be shared with nobody."""
        self._blocks.reset_prefix_cache()

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is lost, or held by nobody, or a sequence is where it should not be."""
        self._blocks.check_integrity([seq.block_table for seq in self._running])
        order = [seq.seq_id for seq in (*self._running, *self._waiting)]
        assert order == sorted(order), "whoever runs came before whoever waits"
        assert not any(seq.block_table for seq in self._waiting)
        indices = [*self._free_batch_indices, *(seq.batch_index for seq in self._running)]
        assert sorted(indices) == list(range(self._max_num_seqs)), "each running sequence has a row of its own"

    def _schedule_running(self, scheduled: dict[int, Scheduled]) -> bool:
        """Fills `scheduled` from the running sequences; whether any of them had to be preempted."""
        preempted = False
        for seq in sorted(self._running, key=lambda seq: not seq.is_decoding):  # stable: by age within each kind
            num_tokens = min(seq.num_uncomputed, self._budget(scheduled))
            preempted_now = not seq.block_table
            if num_tokens == 0 or preempted_now or seq.has_last_token:
                continue
            while (missing := self._missing_blocks(seq, num_tokens)) > self._blocks.num_free:
                victim = self._running[-1]
                scheduled.pop(victim.seq_id, None)
                self._preempt(victim)
                preempted = True
                if victim is seq:
                    break
            else:
                self._extend(seq, missing)
                scheduled[seq.seq_id] = Scheduled.next_of(seq, num_tokens)
        return preempted

    def _admit(self, scheduled: dict[int, Scheduled]) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs and self._budget(scheduled) > 0:
            seq = self._waiting[0]
            # One token at least must run: its logits are what the first new token is sampled from.
            full = (seq.num_tokens - 1) // self._blocks.block_size
            cached = self._blocks.cached_prefix(seq.hash_blocks(full, self._blocks.block_size))
            missing = self._blocks.blocks_for(seq.num_tokens) - len(cached)
            # A block to grow for each that runs, so that an admission is not undone in the next step.
            if missing + len(self._running) > self._blocks.num_free_excluding(cached) and self._running:
                return
            self._blocks.acquire(cached)
            seq.block_table = cached
            seq.num_computed = len(cached) * self._blocks.block_size
            self._count_admission(seq)
            num_tokens = min(seq.num_uncomputed, self._budget(scheduled))
            self._extend(seq, self._missing_blocks(seq, num_tokens))
            seq.batch_index = self._free_batch_indices.pop()
            self._running.append(self._waiting.popleft())
            scheduled[seq.seq_id] = entry = Scheduled.next_of(seq, num_tokens)
            # At once, so that the next to be admitted finds them: a step writes all its keys and values of a layer
            # before any of its queries reads them.
            self._cache_full_blocks(entry)

    def _budget(self, scheduled: dict[int, Scheduled]) -> int:
        return self._max_num_batched_tokens - sum(entry.num_tokens for entry in scheduled.values())

    def _missing_blocks(self, seq: Sequence, num_tokens: int) -> int:
        return max(0, self._blocks.blocks_for(seq.num_computed + num_tokens) - len(seq.block_table))

    def _extend(self, seq: Sequence, count: int) -> None:
        blocks = self._blocks.allocate(count)
        seq.block_table.extend(blocks)
        self._new_blocks.extend(blocks)

    def _cache_full_blocks(self, entry: Scheduled) -> None:
        """The blocks that this step fills, and one that the last step filled with a token the host did not know."""
        size = self._blocks.block_size
        hashes = entry.seq.hash_blocks(min(entry.end, entry.seq.num_tokens) // size, size)
        for index in range(max(0, entry.start - 1) // size, len(hashes)):
            self._blocks.cache_block(entry.seq.block_table[index], hashes[index])

    def _preempt(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._free_batch_indices.append(seq.batch_index)
        self._free(seq)
        self._waiting.appendleft(seq)
        self._stats.preemptions += 1

    def _free(self, seq: Sequence) -> None:
        self._blocks.release(seq.block_table)
        seq.block_table, seq.num_computed = [], 0

    def _count_admission(self, seq: Sequence) -> None:
        self._stats.prefix_cache_queries += seq.num_tokens
        self._stats.prefix_cache_hits += seq.num_computed
        if seq.cached_tokens is None:
            seq.cached_tokens = seq.num_computed
            self._stats.prompt_tokens += seq.num_prompt_tokens
            self._stats.cached_prompt_tokens += seq.cached_tokens

    def _count(self) -> None:
        self._stats.num_running, self._stats.num_waiting = len(self._running), len(self._waiting)
        self._stats.kv_cache_usage = self._blocks.usage

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence, the oldest first."""
        return iter([*self._running, *self._waiting])
