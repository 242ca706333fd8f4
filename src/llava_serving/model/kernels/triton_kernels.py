"""Triton's kernels behind the interface `PagedKernels`."""

import torch

from ..kv_cache import BLOCK_SIZE, LayerCache
from .decode_attention import decode_attention
from .rotary import rotate_and_cache


class TritonKernels:
    """`decode_attention` and `rotate_and_cache` describe the arguments."""

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        block_tables: torch.Tensor, cache: LayerCache,
    ) -> torch.Tensor:  # fmt: skip
        return decode_attention(heads, cos, sin, positions, block_tables, cache, BLOCK_SIZE)

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, cache: LayerCache,
    ) -> None:  # fmt: skip
        rotate_and_cache(heads, cos, sin, positions, slots, cache)
