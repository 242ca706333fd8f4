"""Which blocks of the KV cache are whose, and what the free ones still hold.

A block whose hash was published can be shared by any sequence with the same beginning, and keeps its contents after
its last holder left, until another sequence needs the room (PagedAttention, Kwon et al. 2023, arXiv:2309.06180,
section 4; hashes in a chain as in vLLM's automatic prefix caching).
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens, handed out by number from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))  # in the order in which they are to be used again
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """The part of the blocks that sequences hold."""
        return 1 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def cached_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest prefix of `hashes` that is in the cache."""
        found = []
        for block_hash in hashes:
            if (block := self._block_of.get(block_hash)) is None:
                break
            found.append(block)
        return found

    def num_free_excluding(self, blocks: Iterable[int]) -> int:
        """Blocks that could be allocated once `blocks` are shared."""
        return len(self._free) - sum(block in self._free for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            self._free.pop(block, None)
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks that nobody holds; what they held is forgotten."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free of {self.num_blocks}"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
            self._evict(block)
        return blocks

    def cache_block(self, block: int, block_hash: bytes) -> None:
        """The block may be shared as `block_hash` from now on; of two with the same contents the first is."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def release(self, blocks: list[int]) -> None:
        """One holder less for each of a sequence's blocks, given in order."""
        for block in reversed(blocks):  # so that the end of a prefix goes before its beginning
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} was released more often than held"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._hash_of)

    def reset_prefix_cache(self) -> None:
        """Nothing can be shared any more; ref_counts keep what they hold."""
        self._hash_of.clear()
        self._block_of.clear()

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Raises AssertionError unless `tables` are all the ref_counts there are."""
        held = Counter(block for table in tables for block in table)
        assert [held[block] for block in range(self.num_blocks)] == self._ref_counts, (
            "ref_counts and block tables differ"
        )
        assert all((count == 0) == (block in self._free) for block, count in enumerate(self._ref_counts))
        assert {block: block_hash for block_hash, block in self._block_of.items()} == self._hash_of

    def _evict(self, block: int) -> None:
        if (block_hash := self._hash_of.pop(block, None)) is not None:
            del self._block_of[block_hash]
