"""The keys and values of every token of every sequence, in blocks."""

from typing import NamedTuple

import torch
from transformers import LlamaConfig

from .kv_cache_int8 import dequantize, quantize

# A multiple of what attention kernels need on any device, and small enough that prompts share most of a prefix.
BLOCK_SIZE = 16


def bytes_per_block(config: LlamaConfig, num_layers: int, dtype: torch.dtype) -> int:
    """Returns the bytes of the keys and values of BLOCK_SIZE tokens in `num_layers` layers, scales included."""
    head_bytes = config.head_dim * dtype.itemsize + (torch.float32.itemsize if dtype == torch.int8 else 0)
    num_bytes: int = 2 * num_layers * BLOCK_SIZE * config.num_key_value_heads * head_bytes
    return num_bytes


class LayerCache(NamedTuple):
    """The keys and values of one layer, (heads, slots, head size) each, with scales (heads, slots) if they are int8."""

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    def gather(self, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys and the values of `slots` (tokens,), each (tokens, heads, head size)."""
        keys, values, *scales = (states.index_select(1, slots).transpose(0, 1) for states in self if states is not None)
        if scales:
            return dequantize(keys, scales[0], dtype), dequantize(values, scales[1], dtype)
        return keys.to(dtype), values.to(dtype)

    def quantized(self) -> "LayerCache":
        (keys, key_scales), (values, value_scales) = quantize(self.keys), quantize(self.values)
        return LayerCache(keys, values, key_scales, value_scales)

    def clone(self) -> "LayerCache":
        return LayerCache(*(states.clone() for states in self if states is not None))


class KVCache:
    """The keys and values of some layers, on one device.

    `keys` and `values` hold for each layer (heads, blocks, BLOCK_SIZE, head size). `layers` are views of the same
    memory, and of the scales that int8 has. Heads come first, so that the gathered blocks of a sequence are one matrix
    per head.

    The last block comes on top of `num_blocks` and belongs to no sequence. Block tables of unequal length are padded
    with this null block, and padding rows of a static decode step may write to it.
    """

    def __init__(
        self, config: LlamaConfig, num_layers: int, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads = config.num_key_value_heads
        shape = (num_layers, heads, num_blocks + 1, BLOCK_SIZE, config.head_dim)
        self.dtype = dtype
        self.null_block = num_blocks
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.keys, self.values = self._keys.unbind(), self._values.unbind()
        memory = [states.flatten(2, 3) for states in (self._keys, self._values)]
        if dtype == torch.int8:
            memory += [torch.zeros(memory[0].shape[:-1], device=device) for _ in range(2)]
        self.layers = [LayerCache(*layer) for layer in zip(*memory, strict=True)]
        self.num_bytes = sum(states.nbytes for states in memory)

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
        self.layers[layer].keys.index_copy_(1, slots, keys.transpose(0, 1))
        self.layers[layer].values.index_copy_(1, slots, values.transpose(0, 1))
