"""Paged attention by the kernels of attention.c."""

import ctypes

import torch

from ..kv_cache import BLOCK_SIZE, LayerCache
from .library import Pointer, pointer

MAX_HEAD_SIZE = 512  # with which sums of integers fit in 32 bits


class _AttentionLayer(ctypes.Structure):
    """`attention_layer` of attention.c."""

    _fields_ = (
        *((name, Pointer) for name in (
            "states", "output", "cosine", "sine", "keys", "values", "key_scales", "value_scales", "positions",
            "block_tables", "long_positions", "slots",
        )),
        *((name, ctypes.c_int64) for name in (
            "tokens", "heads", "kv_heads", "head_size", "cache_slots", "max_blocks",
        )),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    )  # fmt: skip


class CKernels:
    """The `PagedKernels` of a CPU, in float32 or bfloat16. `kernels.decode_attention` and `kernels.rotary` describe the
    arguments."""

    def __init__(self, kernels: ctypes.CDLL) -> None:
        assert kernels.llava_block_tokens() == BLOCK_SIZE
        self._kernels = kernels

    def decode(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        block_tables: torch.Tensor, cache: LayerCache,
    ) -> torch.Tensor:  # fmt: skip
        output = heads.new_empty(len(heads), heads.shape[1] - 2 * len(cache.keys), heads.shape[2])
        layer = _attention_layer(heads, cos, sin, cache)
        layer.output, layer.positions, layer.block_tables = map(pointer, (output, positions, block_tables))
        layer.max_blocks = block_tables.shape[1]
        self._kernels.llava_decode(ctypes.byref(layer))
        return output

    def rotate_and_cache(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        slots: torch.Tensor, cache: LayerCache,
    ) -> None:  # fmt: skip
        positions, slots = positions.long(), slots.long()
        layer = _attention_layer(heads, cos, sin, cache)
        layer.long_positions, layer.slots = pointer(positions), pointer(slots)
        self._kernels.llava_rotate_and_cache(ctypes.byref(layer))


def _attention_layer(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: LayerCache) -> _AttentionLayer:
    assert all(states is None or states.is_contiguous() for states in (heads, *cache))
    assert heads.dtype == cos.dtype
    assert cache.keys.dtype == (heads.dtype if cache.key_scales is None else torch.int8)
    num_tokens, all_heads, head_size = heads.shape
    num_kv_heads, num_slots, _ = cache.keys.shape
    assert head_size <= MAX_HEAD_SIZE
    layer = _AttentionLayer(*map(pointer, (heads, None, cos, sin, *cache)))
    layer.tokens, layer.heads, layer.kv_heads = num_tokens, all_heads - 2 * num_kv_heads, num_kv_heads
    layer.head_size, layer.cache_slots, layer.scale = head_size, num_slots, head_size**-0.5
    layer.is_bfloat16, layer.threads = heads.dtype == torch.bfloat16, torch.get_num_threads()
    return layer
