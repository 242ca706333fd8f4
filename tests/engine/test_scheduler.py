"""The scheduler with a simulated device, whose cache holds a hash of the token's prefix at each written position.

The next token follows from that hash. A block that is wrong, stale or shared too early gives a wrong token.
"""

import random
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.prompt import PromptImage, SamplingParams
from llava_serving.engine.scheduler import Batch, ScheduledChunk, Scheduler
from llava_serving.engine.sequence import Sequence
from llava_serving.engine.stats import Stats

EOS, IMAGE_TOKEN, IMAGE_LENGTH = 0, 77, 5
A, B = b"picture A", b"picture B"
TEXTS = [(1,), (1, 2), (2, 1, 1), (3, 3, 3, 3, 3, 3, 3)]  # few, so that prompts share beginnings


@dataclass(frozen=True)
class Request:
    parts: tuple[bytes | tuple[int, ...], ...]  # pictures and texts
    max_new_tokens: int = 1
    seed: int = 0
    cache_salt: bytes = b""
    arrives: int = 0  # the request arrives before this step
    leaves: int | None = None  # the client disconnects before this step, if the request has not ended

    def sequence(self, seq_id: int = 0) -> Sequence:
        ids: list[int] = []
        images = []
        for part in self.parts:
            if isinstance(part, bytes):
                images.append(PromptImage(len(ids), IMAGE_LENGTH, part, pixels=None))
            ids += [IMAGE_TOKEN] * IMAGE_LENGTH if isinstance(part, bytes) else part
        params = SamplingParams(self.max_new_tokens, seed=self.seed)
        return Sequence(seq_id, ids, tuple(images), params, random.Random(0), self.cache_salt)

    def alone(self) -> list[int]:
        """Returns the tokens that it gets without other requests."""
        seq = self.sequence()
        while not grow(seq, token_after(seq, keys(seq)[-1])):
            pass
        return seq.token_ids[seq.num_prompt_tokens :]


def keys(seq: Sequence, unknown: tuple[int, ...] | list[int] = ()) -> list[int]:
    """Returns a hash of the content up to each position. It hashes ints, so that every process gets the same.

    `unknown` are the tokens at the end that the host does not know yet.
    """
    pictured = {image.start + i: (*image.digest, i) for image in seq.images for i in range(image.length)}
    ids = [*seq.token_ids, *unknown]
    tokens = ((token, *pictured.get(position, ())) for position, token in enumerate(ids))
    return list(accumulate(tokens, lambda key, token: hash((key, token)), initial=0))[1:]


def token_after(seq: Sequence, key: int) -> int:
    """Returns the token that follows a token with this key."""
    return hash((key, seq.params.seed)) % 40


def grow(seq: Sequence, token: int) -> bool:
    """Appends a token. Returns whether the sequence ends with it."""
    seq.token_ids.append(token)
    return seq.token_ids[-1] == EOS or seq.num_generated == seq.params.max_new_tokens


class Device:
    """Runs the scheduler's batches, and checks its invariants in every step.

    With `overlaps` the host reads a step's tokens after it has scheduled the next one, as the engine does on a GPU.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 4,
        max_num_seqs: int = 4,
        max_num_tokens: int = 16,
        overlaps: bool = False,
    ) -> None:
        self.overlaps = overlaps
        self.unknown: dict[int, list[int]] = {}  # by seq_id: tokens that the host does not know yet
        self.in_flight: list[Sequence] = []  # sampled in the step that the host has not read
        self.stats, self.counted = Stats(), Stats()  # the scheduler's counts, and the expected ones
        self.blocks = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(self.blocks, max_num_seqs, max_num_tokens, self.stats)
        self.max_num_seqs, self.max_num_tokens = max_num_seqs, max_num_tokens
        self.cache: dict[tuple[int, int], int] = {}  # (block, offset) -> key
        self.seqs: list[Sequence] = []  # every sequence that was added
        self.finished: list[Sequence] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.seqs.append(request.sequence(len(self.seqs)))
            self.scheduler.add(self.seqs[-1], self.seqs[-1].num_tokens + request.max_new_tokens)
            self.check_counts()

    def step(self, fails: bool = False) -> Batch:
        before = [seq for seq in self.scheduler if seq.block_table]
        batch = self.scheduler.schedule()
        self.check_schedule(batch, before)
        self.run(batch)
        if fails:
            self.cache = dict.fromkeys(self.cache, -1)
            self.scheduler.reset_prefix_cache()
            for chunk in batch.scheduled:
                self.scheduler.remove(chunk.seq)
            self.read_tokens([])
            return batch
        samples = [chunk.seq for chunk in batch.scheduled if chunk.samples]
        for seq in samples:
            token = token_after(seq, self.cache[self.slots(seq)[seq.length - 1]])
            self.unknown.setdefault(seq.seq_id, []).append(token)
        if batch.scheduled:
            self.scheduler.advance(batch)
            self.counted.steps += 1
            self.counted.scheduled_seqs += len(batch.scheduled)
            self.counted.scheduled_tokens += batch.num_tokens
        self.read_tokens(samples)
        return batch

    def read_tokens(self, launched: list[Sequence]) -> None:
        """Reads the tokens of the step before, or of the step just launched if nothing overlaps."""
        ready = self.in_flight if self.overlaps else launched
        self.in_flight = launched if self.overlaps else []
        for seq in ready:
            seq.num_pending -= 1
            token = self.unknown[seq.seq_id].pop(0)
            if seq in self.scheduler and grow(seq, token):
                self.finished.append(seq)
                self.scheduler.remove(seq)

    def serve(self, *requests: Request) -> Stats:
        """Runs to the end. Every step computes a token of the oldest sequence, so the number of steps is bounded."""
        self.add(*requests)
        # If the host is one step behind, each sequence may need one step more.
        extra = sum(1 for _ in self.scheduler) if self.overlaps else 0
        for _ in range(extra + sum(seq.num_tokens + seq.params.max_new_tokens for seq in self.scheduler)):
            if self.scheduler.has_work:
                self.step()
        assert not self.scheduler.has_work, "starved"
        assert self.blocks.num_free == self.blocks.num_blocks, "leaked"
        self.check_counts()
        return self.stats

    def check_schedule(self, batch: Batch, before: list[Sequence]) -> None:
        self.scheduler.check_integrity()
        running = [seq for seq in self.scheduler if seq.block_table]
        assert running == sorted(self.scheduler, key=lambda seq: seq.seq_id)[: len(running)], "the oldest sequences run"
        must_run = [seq for seq in running if not seq.has_last_token]
        assert must_run or self.overlaps
        assert {chunk.seq for chunk in batch.scheduled} == set(must_run), "every running sequence is in every step"
        assert len(batch.scheduled) <= self.max_num_seqs
        assert all(1 <= chunk.num_tokens <= chunk.seq.num_uncomputed for chunk in batch.scheduled)
        assert sum(chunk.num_tokens for chunk in batch.scheduled) == batch.num_tokens <= self.max_num_tokens
        self.counted.preemptions += sum(not seq.block_table for seq in before)
        for seq in [seq for seq in running if seq not in before]:
            self.counted.prefix_cache_queries += seq.num_tokens
            self.counted.prefix_cache_hits += seq.num_computed
        self.check_counts()

    def check_counts(self) -> None:
        held = {(block, seq.cache_salt) for seq in self.scheduler for block in seq.block_table}  # a block has one salt
        self.counted.num_running = sum(bool(seq.block_table) for seq in self.scheduler)
        self.counted.num_waiting = sum(not seq.block_table for seq in self.scheduler)
        self.counted.kv_cache_usage = 1 - (self.blocks.num_blocks - len(held)) / self.blocks.num_blocks
        self.counted.prompt_tokens = sum(seq.num_prompt_tokens for seq in self.seqs if seq.cached_tokens is not None)
        self.counted.cached_prompt_tokens = sum(seq.cached_tokens or 0 for seq in self.seqs)
        assert self.stats == self.counted

    def run(self, batch: Batch) -> None:
        """Clears, writes and reads the cache, as each layer of the model does.

        Chunks of several tokens all write before any of them reads. Chunks of one token come after them, and read and
        write at the same time (`PagedAttention`).
        """
        self.cache = {slot: key for slot, key in self.cache.items() if slot[0] not in batch.new_blocks}
        many, one = ([c for c in batch.scheduled if (c.num_tokens > 1) == several] for several in (True, False))
        for chunk in many:
            self.cache.update(self.written(chunk))
        for chunk in many:
            self.check_read(chunk, self.cache)
        for chunk in one:
            self.check_read(chunk, self.cache | self.written(chunk))
        for chunk in one:
            self.cache.update(self.written(chunk))

    def written(self, chunk: ScheduledChunk) -> dict[tuple[int, int], int]:
        new = slice(chunk.start, chunk.end)
        return dict(zip(self.slots(chunk.seq)[new], self.keys(chunk.seq)[new], strict=True))

    def check_read(self, chunk: ScheduledChunk, cache: dict[tuple[int, int], int]) -> None:
        keys_in_cache = [cache.get(slot) for slot in self.slots(chunk.seq)]
        assert keys_in_cache[: chunk.end] == self.keys(chunk.seq)[: chunk.end]
        assert set(keys_in_cache[chunk.end :]) <= {None}, "not cleared"

    def keys(self, seq: Sequence) -> list[int]:
        return keys(seq, self.unknown.get(seq.seq_id, ()))

    def slots(self, seq: Sequence) -> list[tuple[int, int]]:
        return [(block, offset) for block in seq.block_table for offset in range(self.blocks.block_size)]


REQUESTS = st.builds(
    Request,
    parts=st.lists(st.sampled_from([A, B, *TEXTS]), min_size=1, max_size=6).map(tuple),
    max_new_tokens=st.integers(1, 20),
    seed=st.integers(0, 2),
    cache_salt=st.sampled_from([b"", b"", b"other"]),
    arrives=st.integers(0, 12) | st.just(0),
    leaves=st.none() | st.none() | st.integers(0, 30),
)
SHAPES = st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 5), st.integers(0, 8))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(REQUESTS, min_size=1, max_size=12),
    st.integers(0, 8),
    SHAPES,
    st.sets(st.integers(0, 40), max_size=2),
    st.booleans(),
)
def test_each_sequence_ends_once_with_the_tokens_that_it_gets_alone(
    requests: list[Request], spare: int, shape: tuple[int, int, int], failing: set[int], overlaps: bool
) -> None:
    block_size, max_num_seqs, room = shape
    longest = max(request.sequence().num_tokens + request.max_new_tokens for request in requests)
    device = Device(-(-longest // block_size) + spare, block_size, max_num_seqs, max_num_seqs + room, overlaps)
    requests.sort(key=lambda request: request.arrives)
    for now in range(40):
        device.add(*(request for request in requests if request.arrives == now))
        for seq, request in zip(device.seqs, requests, strict=False):
            if request.leaves == now and seq in device.scheduler:
                device.scheduler.remove(seq)
        if device.scheduler.has_work:
            device.step(fails=now in failing)
    device.serve()
    for request, seq in zip(requests, device.seqs, strict=True):
        tokens, whole = seq.token_ids[seq.num_prompt_tokens :], request.alone()
        assert tokens == whole[: len(tokens)]
        assert (seq in device.finished) == (tokens == whole)
        assert seq in device.finished or request.leaves is not None or failing


def test_a_preempted_sequence_restarts_from_its_cached_blocks() -> None:
    stats = Device(8).serve(*(Request((TEXTS[3], (i,)), max_new_tokens=20) for i in range(4, 8)))
    assert stats.preemptions > 2
    assert stats.prefix_cache_hits > stats.cached_prompt_tokens == 3 * 4
    assert stats.prefix_cache_queries > stats.prompt_tokens == 4 * 8


def test_a_half_filled_block_of_a_preempted_prompt_is_not_cached() -> None:
    assert Device(7, 4, 2, 3).serve(Request(((1, 1),), 10), Request(((9,) * 17,))).preemptions == 1


def test_admission_leaves_one_free_block_per_running_sequence() -> None:
    assert Device(3).serve(Request(((1,) * 4,), 4), Request(((2,) * 5,), 2)).preemptions == 0


def test_a_long_prompt_gets_the_tokens_that_decoding_leaves() -> None:
    device = Device(40, max_num_seqs=3)
    device.add(Request(((1, 5),), 20), Request(((1, 7),), 20))
    device.step()
    device.add(Request(((9,) * 40,)))
    assert [[e.num_tokens for e in device.step().scheduled] for _ in range(3)] == [[1, 1, 14], [1, 1, 14], [1, 1, 12]]


@pytest.mark.parametrize("max_num_tokens", [5, 64])
def test_sequences_with_one_prompt_compute_its_full_blocks_once(max_num_tokens: int) -> None:
    requests = (Request(((1, 2, 3), A, (4, 5, 6)), 9, seed) for seed in range(4))  # 11 tokens
    assert Device(40, max_num_tokens=max_num_tokens).serve(*requests).prefix_cache_hits == 3 * 8


ONE = Request(((1, 2, 3), A, TEXTS[3]))  # 15 tokens, the picture at 3 to 8
OTHERS = [
    (ONE, 12),
    (replace(ONE, parts=(*ONE.parts[:2], (4,))), 8),
    (replace(ONE, parts=((1, 2, 3), B, TEXTS[3])), 0),  # the same ids
    (replace(ONE, cache_salt=b"other"), 0),
]


@pytest.mark.parametrize(("other", "shared"), OTHERS)
def test_blocks_with_the_same_ids_pixels_and_salt_are_shared(other: Request, shared: int) -> None:
    device = Device(20)
    device.serve(ONE)
    device.serve(other)
    assert device.seqs[1].cached_tokens == shared


@pytest.mark.parametrize(("fails", "cached"), [(True, 0), (False, 4)])
def test_blocks_of_a_failed_step_are_not_cached(fails: bool, cached: int) -> None:
    device = Device(20, max_num_tokens=6)
    device.add(ONE)
    device.step(fails)
    if not fails:
        device.scheduler.remove(device.seqs[0])  # in the middle of a block
    device.serve(ONE)
    assert device.seqs[1].cached_tokens == cached


def test_the_scheduler_needs_no_torch() -> None:
    script = "import sys, llava_serving.engine.scheduler; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
