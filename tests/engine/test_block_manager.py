"""The block manager against a naive model of references and cached contents, and the hashes of blocks."""

import random
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.prompt import PromptImage, SamplingParams
from llava_serving.engine.sequence import Sequence

HASHES = [b"a", b"b", b"c", b"d", b"e"]
PICK = st.integers(0, 99)  # an index, modulo the number of items


class Blocks(RuleBasedStateMachine):
    """Sequences arrive with a prefix that may be cached, cache blocks, and leave, in any order."""

    @initialize(num_blocks=st.integers(1, 9), block_size=st.integers(1, 4))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.manager = BlockManager(num_blocks, block_size)
        self.num_blocks = num_blocks
        self.tables: list[list[int]] = []
        self.cached: dict[bytes, int] = {}
        self.released_at: dict[
            int, tuple[int, int]
        ] = {}  # block -> when its last reference was released: later is larger
        self.clock = 0

    @rule(hashes=st.lists(st.sampled_from(HASHES), unique=True), count=st.integers(0, 5))
    def a_sequence_arrives(self, hashes: list[bytes], count: int) -> None:
        prefix = self.manager.cached_prefix(hashes)
        assert prefix == self.longest_prefix(hashes)
        num_free = self.manager.num_free_excluding(prefix)
        self.manager.acquire(prefix)
        self.tables.append(prefix)
        assert self.manager.num_free == num_free == len(self.free())
        self.allocate(prefix, min(count, num_free))

    @precondition(lambda self: self.tables)
    @rule(pick=PICK, count=st.integers(1, 3))
    def a_sequence_grows(self, pick: int, count: int) -> None:
        self.allocate(self.tables[pick % len(self.tables)], min(count, self.manager.num_free))

    @precondition(lambda self: any(self.tables))
    @rule(pick=PICK, block_hash=st.sampled_from(HASHES))
    def an_owned_block_is_cached(self, pick: int, block_hash: bytes) -> None:
        held = [block for table in self.tables for block in table]
        block = held[pick % len(held)]
        self.manager.cache_block(block, block_hash)
        if block_hash not in self.cached and block not in self.cached.values():
            self.cached[block_hash] = block

    @precondition(lambda self: self.tables)
    @rule(pick=PICK)
    def a_sequence_leaves(self, pick: int) -> None:
        table = self.tables.pop(pick % len(self.tables))
        self.manager.release(table)
        self.clock += 1
        self.released_at.update({block: (self.clock, -index) for index, block in enumerate(table)})

    @rule()
    def the_cache_is_reset(self) -> None:
        self.manager.reset_prefix_cache()
        self.cached.clear()

    @invariant()
    def every_block_is_free_or_owned(self) -> None:
        self.manager.check_integrity(self.tables)
        assert self.manager.num_free == len(self.free())
        assert self.manager.usage == pytest.approx((self.num_blocks - len(self.free())) / self.num_blocks)

    @invariant()
    def a_cached_block_is_found_until_it_is_allocated(self) -> None:
        for block_hash in HASHES:
            assert self.manager.cached_prefix([block_hash]) == self.longest_prefix([block_hash])

    def allocate(self, table: list[int], count: int) -> None:
        """Checks the order of allocation: empty blocks first, then the cached ones that were released longest ago."""
        cached = sorted(self.free() & set(self.cached.values()), key=self.released_at.__getitem__)
        empty = self.free() - set(cached)
        blocks = self.manager.allocate(count)
        assert len(set(blocks)) == count
        assert set(blocks) <= empty if count <= len(empty) else set(blocks) == empty | {*cached[: count - len(empty)]}
        self.cached = {key: block for key, block in self.cached.items() if block not in blocks}
        table.extend(blocks)

    def free(self) -> set[int]:
        return set(range(self.num_blocks)) - {block for table in self.tables for block in table}

    def longest_prefix(self, hashes: list[bytes]) -> list[int]:
        misses = [index for index, block_hash in enumerate(hashes) if block_hash not in self.cached]
        return [self.cached[block_hash] for block_hash in hashes[: min(misses, default=len(hashes))]]


Blocks.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBlocksAgainstANaiveAccount = Blocks.TestCase


def blocks_of_ended_sequence(manager: BlockManager, *hashes: bytes) -> list[int]:
    """Returns the blocks of a sequence that cached them and left."""
    blocks = manager.allocate(len(hashes))
    for block, block_hash in zip(blocks, hashes, strict=True):
        manager.cache_block(block, block_hash)
    manager.release(blocks)
    return blocks


def test_cached_blocks_are_evicted_last_and_a_prefix_from_its_end() -> None:
    manager = BlockManager(6, 4)
    first = blocks_of_ended_sequence(manager, b"a", b"b")
    second = blocks_of_ended_sequence(manager, b"c", b"d")
    plain = manager.allocate(2)
    manager.release(plain)
    assert manager.cached_prefix([b"a", b"b"]) == first
    order = [manager.allocate(1)[0] for _ in range(6)]
    assert set(order[:2]) == set(plain)
    assert order[2:] == [first[1], first[0], second[1], second[0]]


def test_a_prefix_that_was_acquired_again_is_evicted_later() -> None:
    manager = BlockManager(2, 4)
    first, second = blocks_of_ended_sequence(manager, b"a"), blocks_of_ended_sequence(manager, b"b")
    manager.acquire(first)
    manager.release(first)
    assert manager.allocate(2) == [*second, *first]


def test_the_first_of_two_blocks_with_the_same_hash_is_found() -> None:
    manager = BlockManager(2, 4)
    first, second = manager.allocate(2)
    manager.cache_block(first, b"a")
    manager.cache_block(second, b"a")
    assert manager.cached_prefix([b"a"]) == [first]
    manager.release([first])
    manager.release([second])
    assert manager.cached_prefix([b"a"]) == [first]
    assert manager.allocate(1) == [second]  # it never was cached, so it goes first


def test_a_reset_keeps_references_and_loses_hashes() -> None:
    manager = BlockManager(2, 4)
    held = manager.allocate(1)
    manager.cache_block(held[0], b"a")
    manager.reset_prefix_cache()
    assert manager.cached_prefix([b"a"]) == []
    assert manager.allocate(1) != held
    assert manager.num_free == 0


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_partly_filled_block_counts_as_a_block(num_tokens: int, num_blocks: int) -> None:
    assert BlockManager(3, 4).blocks_for(num_tokens) == num_blocks


def test_allocating_or_releasing_too_much_fails() -> None:
    manager = BlockManager(2, 4)
    blocks = manager.allocate(1)
    with pytest.raises(AssertionError, match="2 blocks requested, 1 of 2 are free"):
        manager.allocate(2)
    manager.release(blocks)
    with pytest.raises(AssertionError, match="more often than acquired"):
        manager.release(blocks)


@pytest.mark.parametrize("wrong", [[], [[0]], [[0, 1], [1], [1]], [[0, 1, 2], [1]]])
def test_the_integrity_check_finds_leaked_and_unowned_blocks(wrong: list[list[int]]) -> None:
    manager = BlockManager(3, 4)
    table = manager.allocate(2)
    manager.acquire(table[1:])
    manager.check_integrity([table, table[1:]])
    with pytest.raises(AssertionError, match="reference counts and block tables differ"):
        manager.check_integrity(wrong)


Content = list[
    tuple[int, tuple[bytes, int] | None]
]  # tokens, each with its picture and its offset in the picture, if any
PICTURES = st.builds(lambda picture: [(9, (picture, i)) for i in range(3)], st.sampled_from([b"A", b"B"]))
PARTS = st.lists(PICTURES | st.sampled_from([[(1, None)], [(9, None)]]), max_size=7)
CONTENTS = PARTS.map(lambda parts: list(chain(*parts)))


def hashes(content: Content, salt: bytes, block_size: int) -> list[bytes]:
    starts = [(start, part[0]) for start, (_, part) in enumerate(content) if part is not None and part[1] == 0]
    images = tuple(PromptImage(start, 3, picture, pixels=None) for start, picture in starts)
    seq = Sequence(0, [token for token, _ in content], images, SamplingParams(1), random.Random(0), salt)
    whole = seq.hash_blocks(len(content) // block_size, block_size)
    assert seq.hash_blocks(len(whole) // 2, block_size) == whole[: len(whole) // 2]
    return whole


SALTS = st.sampled_from([b"", b"other"])


@settings(max_examples=500)
@given(one=CONTENTS, other=CONTENTS, salts=st.tuples(SALTS, SALTS), block_size=st.integers(1, 4))
def test_hashes_are_equal_if_and_only_if_all_content_up_to_the_block_end_is_equal(
    one: Content, other: Content, salts: tuple[bytes, bytes], block_size: int
) -> None:
    ends = range(block_size, min(len(one), len(other)) + 1, block_size)
    same = [salts[0] == salts[1] and one[:end] == other[:end] for end in ends]
    pairs = zip(hashes(one, salts[0], block_size), hashes(other, salts[1], block_size), strict=False)
    assert [mine == theirs for mine, theirs in pairs] == same
    everything = hashes(one, salts[0], block_size)
    assert len(everything) == len(set(everything)), "each block of a sequence has a hash of its own"
