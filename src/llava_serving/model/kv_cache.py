"""The keys and values of every token of every sequence, in blocks."""

import torch
from transformers import LlamaConfig

# A multiple of what attention kernels need on any device, and small enough that prompts share most of a prefix.
BLOCK_SIZE = 16


def bytes_per_block(config: LlamaConfig, num_layers: int, dtype: torch.dtype) -> int:
    """Returns the bytes of the keys and values of BLOCK_SIZE tokens in `num_layers` layers."""
    elements: int = 2 * num_layers * BLOCK_SIZE * config.num_key_value_heads * config.head_dim
    return elements * dtype.itemsize


class KVCache:
    """The keys and values of some layers, on one device.

    `keys` and `values` hold for each layer (heads, blocks, BLOCK_SIZE, head size). `key_slots` and `value_slots` are
    views of the same memory as (heads, slots, head size). Heads come first, so that the gathered blocks of a sequence
    are one matrix per head.

    The last block comes on top of `num_blocks` and belongs to no sequence. Block tables of unequal length are padded
    with this null block, and padding rows of a static decode step may write to it.
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
        """Writes (tokens, heads, head size) to `slots` (tokens,): block * BLOCK_SIZE + offset in the block."""
        self.key_slots[layer].index_copy_(1, slots, keys.transpose(0, 1))
        self.value_slots[layer].index_copy_(1, slots, values.transpose(0, 1))
