"""Which sequences own which blocks of the KV cache, and which contents the free blocks still hold.

A block with a hash can be shared by any sequence with the same prefix. It keeps its contents after its last reference
is released, until another sequence needs the block (PagedAttention, Kwon et al. 2023, arXiv:2309.06180, section 4; the
chained hashes are those of vLLM's automatic prefix caching).
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens. A block is known by its index, from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))  # in the order in which they are reused
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Counts the blocks without a reference, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Returns the share of the blocks that sequences own, from 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def cached_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Returns the blocks of the longest prefix of `hashes` that is in the cache."""
        blocks = []
        for block_hash in hashes:
            if (block := self._block_of.get(block_hash)) is None:
                break
            blocks.append(block)
        return blocks

    def num_free_excluding(self, blocks: Iterable[int]) -> int:
        """Counts the free blocks that are not among `blocks`."""
        return len(self._free) - sum(block in self._free for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each block."""
        for block in blocks:
            self._free.pop(block, None)
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Takes `count` free blocks, each with one reference. Their cached contents are lost."""
        assert count <= len(self._free), f"{count} blocks requested, {len(self._free)} of {self.num_blocks} are free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
            self._evict(block)
        return blocks

    def cache_block(self, block: int, block_hash: bytes) -> None:
        """Lets other sequences find the full block by its hash. If two blocks have one hash, the first stays cached."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def release(self, blocks: list[int]) -> None:
        """Removes one reference from each block of a sequence, which are given in order."""
        for block in reversed(blocks):  # so that the end of a prefix is reused before its beginning
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} was released more often than acquired"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._hash_of)

    def reset_prefix_cache(self) -> None:
        """Forgets the hash of every block. References stay."""
        self._hash_of.clear()
        self._block_of.clear()

    def check_integrity(self, block_tables: Iterable[list[int]]) -> None:
        """Raises AssertionError unless the references are exactly those of `block_tables`."""
        counts = Counter(block for table in block_tables for block in table)
        expected = [counts[block] for block in range(self.num_blocks)]
        assert expected == self._ref_counts, "reference counts and block tables differ"
        assert all((count == 0) == (block in self._free) for block, count in enumerate(self._ref_counts))
        assert {block: block_hash for block_hash, block in self._block_of.items()} == self._hash_of

    def _evict(self, block: int) -> None:
        if (block_hash := self._hash_of.pop(block, None)) is not None:
            del self._block_of[block_hash]
