"""Which sequences run in the next step, and how many of their tokens.

Sequences are admitted in order of arrival, so every running sequence arrived before every waiting one. Running
sequences are scheduled first; a prompt takes the tokens that they leave (chunked prefill: Sarathi-Serve, Agrawal et al.
2024, arXiv:2403.02310). Only the youngest running sequence can therefore have an unfinished prompt, and a long prompt
never delays the sequences that decode. When blocks run out, the youngest sequence is preempted: its blocks are freed,
and its tokens are computed again later. The oldest sequence is never preempted for another, so every sequence ends.

The scheduler knows no tensor, text, clock or caller.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .block_manager import BlockManager
from .sequence import Sequence
from .stats import Stats


@dataclass(frozen=True)
class ScheduledChunk:
    """The tokens `start` to `end` of `seq` run. If `samples`, the last of them is sampled from."""

    seq: Sequence
    start: int
    end: int
    samples: bool

    @classmethod
    def next_of(cls, seq: Sequence, num_tokens: int) -> "ScheduledChunk":
        """Returns the next `num_tokens` uncomputed tokens of `seq`."""
        end = seq.num_computed + num_tokens
        return cls(seq, seq.num_computed, end, end == seq.length)

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Batch:
    """The work of one step. `new_blocks` are newly allocated and hold stale keys and values."""

    scheduled: list[ScheduledChunk]
    new_blocks: list[int]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.scheduled)


class Scheduler:
    """Owns the sequences, and the blocks that they hold, from `add` to `remove`."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int, stats: Stats) -> None:
        assert max_num_batched_tokens >= max_num_seqs >= 1, "each running sequence needs a token in every step"
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self._blocks = blocks
        self._stats = stats
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._num_batch_indices = max_num_seqs
        self._free_batch_indices = list(range(max_num_seqs))

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def running(self) -> Iterable[Sequence]:
        return self._running

    @property
    def waiting(self) -> Iterable[Sequence]:
        return self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Yields every sequence, the oldest first."""
        return iter([*self._running, *self._waiting])

    def add(self, seq: Sequence, max_num_tokens: int) -> None:
        """Queues a sequence that grows to at most `max_num_tokens` tokens, which must fit into the cache."""
        assert self._blocks.blocks_for(max_num_tokens) <= self._blocks.num_blocks, (
            f"a sequence of {max_num_tokens} tokens never fits into {self._blocks.num_blocks} blocks"
        )
        assert not self._waiting or self._waiting[-1].seq_id < seq.seq_id, "sequences are added in order of arrival"
        self._waiting.append(seq)
        self._update_gauges()

    def remove(self, seq: Sequence) -> None:
        """Ends a running or waiting sequence, and frees its blocks."""
        if seq in self._running:
            self._running.remove(seq)
            self._free_batch_indices.append(seq.batch_index)
        else:
            self._waiting.remove(seq)
        self._free(seq)
        self._update_gauges()

    def schedule(self) -> Batch:
        """Returns the next step, which is empty if no sequence can run. Call `advance` once the step is launched."""
        batch = Batch([], [])
        preempted = self._schedule_running(batch)
        for chunk in batch.scheduled:
            self._cache_full_blocks(chunk)
        if not preempted:
            self._admit(batch)
        self._update_gauges()
        return batch

    def advance(self, batch: Batch) -> None:
        """Records that the batch is launched: later launches find its keys and values in the cache."""
        for chunk in batch.scheduled:
            chunk.seq.num_computed = chunk.end
            chunk.seq.num_pending += chunk.samples
        self._stats.steps += 1
        self._stats.scheduled_seqs += len(batch.scheduled)
        self._stats.scheduled_tokens += batch.num_tokens

    def reset_prefix_cache(self) -> None:
        """Shares no cached block any more. A failed step leaves unknown contents in its blocks."""
        self._blocks.reset_prefix_cache()

    def shrink(self) -> str:
        """Makes steps smaller after one that did not fit into the device's memory. Returns the new limit as text.

        First fewer tokens run in a step, down to one per sequence, then fewer sequences. Running sequences go on.
        """
        if self.max_num_batched_tokens > self._num_batch_indices:
            self.max_num_batched_tokens = max(self._num_batch_indices, self.max_num_batched_tokens // 2)
            return f"a step has at most {self.max_num_batched_tokens} tokens"
        self.max_num_seqs = max(1, self.max_num_seqs // 2)
        return f"at most {self.max_num_seqs} sequences run together"

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is leaked, or if a sequence is in a wrong queue."""
        self._blocks.check_integrity([seq.block_table for seq in self._running])
        order = [seq.seq_id for seq in self]
        assert order == sorted(order), "running sequences arrived before waiting ones"
        assert not any(seq.block_table for seq in self._waiting)
        indices = [*self._free_batch_indices, *(seq.batch_index for seq in self._running)]
        assert sorted(indices) == list(range(self._num_batch_indices)), "each running sequence has its own batch index"

    def _schedule_running(self, batch: Batch) -> bool:
        """Adds the running sequences to the batch. Returns whether one of them was preempted."""
        num_running, index = len(self._running), 0
        while index < len(self._running):  # preemption shortens the list at its end
            seq = self._running[index]
            if not seq.has_last_token:
                num_tokens = min(seq.num_uncomputed, self._token_budget(batch))
                if self._preempt_until_free(seq, self._missing_blocks(seq, num_tokens)):
                    self._append_chunk(batch, seq, num_tokens)
            index += 1
        return len(self._running) < num_running

    def _preempt_until_free(self, seq: Sequence, num_blocks: int) -> bool:
        """Preempts the youngest sequences until `num_blocks` are free. Returns False if `seq` is among them."""
        while self._blocks.num_free < num_blocks:
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is seq:
                return False
        return True

    def _admit(self, batch: Batch) -> None:
        """Starts waiting sequences, in order, as long as there is room for them."""
        while self._waiting and len(self._running) < self.max_num_seqs and self._token_budget(batch) > 0:
            seq = self._waiting[0]
            # At least one token must run: the first new token is sampled from its logits.
            num_full = (seq.num_tokens - 1) // self._blocks.block_size
            cached = self._blocks.cached_prefix(seq.hash_blocks(num_full, self._blocks.block_size))
            num_missing = self._blocks.blocks_for(seq.num_tokens) - len(cached)
            # Keeps one free block per running sequence, so that this admission forces no preemption in the next step.
            if num_missing + len(self._running) > self._blocks.num_free_excluding(cached) and self._running:
                return
            self._start(seq, cached)
            self._append_chunk(batch, seq, min(seq.num_uncomputed, self._token_budget(batch)))
            # The next sequence to be admitted may share these blocks.
            self._cache_full_blocks(batch.scheduled[-1])

    def _start(self, seq: Sequence, cached: list[int]) -> None:
        self._blocks.acquire(cached)
        seq.block_table = cached
        seq.num_computed = len(cached) * self._blocks.block_size
        seq.batch_index = self._free_batch_indices.pop()
        self._running.append(self._waiting.popleft())
        self._count_admission(seq)

    def _append_chunk(self, batch: Batch, seq: Sequence, num_tokens: int) -> None:
        blocks = self._blocks.allocate(self._missing_blocks(seq, num_tokens))
        seq.block_table.extend(blocks)
        batch.new_blocks.extend(blocks)
        batch.scheduled.append(ScheduledChunk.next_of(seq, num_tokens))

    def _token_budget(self, batch: Batch) -> int:
        return self.max_num_batched_tokens - batch.num_tokens

    def _missing_blocks(self, seq: Sequence, num_tokens: int) -> int:
        return max(0, self._blocks.blocks_for(seq.num_computed + num_tokens) - len(seq.block_table))

    def _cache_full_blocks(self, chunk: ScheduledChunk) -> None:
        """Caches the blocks that this step fills with several tokens, and one that the last step filled with one.

        Other sequences may read a cached block in the same step. Attention writes all chunks of several tokens before
        it reads any of them. Chunks of one token come after them, and read and write at the same time.
        """
        size = self._blocks.block_size
        end = chunk.end if chunk.num_tokens > 1 else chunk.start
        hashes = chunk.seq.hash_blocks(min(end, chunk.seq.num_tokens) // size, size)
        for index in range(max(0, chunk.start - 1) // size, len(hashes)):
            self._blocks.cache_block(chunk.seq.block_table[index], hashes[index])

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

    def _update_gauges(self) -> None:
        self._stats.num_running, self._stats.num_waiting = len(self._running), len(self._waiting)
        self._stats.kv_cache_usage = self._blocks.usage
