"""The keys and values of every token of every sequence, in blocks."""

import torch
from transformers import LlamaConfig

# A multiple of what attention kernels want on any device, and small enough to share prompts block by block.
BLOCK_SIZE = 16


def bytes_per_block(config: LlamaConfig, num_layers: int, dtype: torch.dtype) -> int:
    """Keys and values of BLOCK_SIZE tokens in so many layers."""
    elements: int = 2 * num_layers * BLOCK_SIZE * config.num_key_value_heads * config.head_dim
    return elements * dtype.itemsize


class KVCache:
    """`keys` and `values`: for each layer (heads, blocks, BLOCK_SIZE, head size); `key_slots` and `value_slots`: the
    same memory as (heads, slots, head size).

    Heads come first, so that the blocks of a sequence, laid side by side, are a matrix for each head. One block more
    than `num_blocks`, the last, is nobody's: tables of unequal length are filled up with it, and padding rows of a
    static step write there.
    """

    def __init__(
        self, config: LlamaConfig, num_layers: int, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads = config.num_key_value_heads
        shape = (num_layers, heads, num_blocks + 1, BLOCK_SIZE, config.head_dim)
        self.null_block = num_blocks
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.keys, self.values = self._keys.unbind(), self._values.unbind()
        self.key_slots, self.value_slots = (
            all_layers.flatten(2, 3).unbind() for all_layers in (self._keys, self._values)
        )

    @property
    def num_bytes(self) -> int:
        return 2 * self._keys.numel() * self._keys.element_size()

    def clear(self, blocks: list[int]) -> None:
        """Zeroes blocks before another sequence uses them, for attention that reads blocks to their end.

        Masked positions have weight 0, but 0 x stale NaN is NaN.
        """
        if blocks:
            index = torch.tensor(blocks, device=self._keys.device)
            self._keys.index_fill_(2, index, 0)
            self._values.index_fill_(2, index, 0)

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """(tokens, heads, head size) into `slots` (tokens,), a slot being block * BLOCK_SIZE + place in the block."""
        self.key_slots[layer].index_copy_(1, slots, keys.transpose(0, 1))
        self.value_slots[layer].index_copy_(1, slots, values.transpose(0, 1))
