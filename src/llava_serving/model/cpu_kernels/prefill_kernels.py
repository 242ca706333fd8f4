"""Attention of prompts and of the vision tower by the kernels of prefill.c."""

import ctypes

import torch

from ..prefill_attention import SequenceLengths
from .library import ROW_DTYPES, Pointer, pointer
from .packed_weight import BLOCK


class _PrefillLayer(ctypes.Structure):
    """`prefill_layer` of prefill.c."""

    _fields_ = (
        *((name, Pointer) for name in (
            "query", "key", "value", "output", "packed_keys", "packed_values", "query_starts", "key_starts",
        )),
        *((name, ctypes.c_int64) for name in (
            "sequences", "heads", "kv_heads", "head_size", "blocks",
            "query_token", "query_head", "key_token", "key_head", "value_token", "value_head",
        )),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_causal", "is_bfloat16", "threads")),
    )  # fmt: skip


class CPrefillAttention:
    """The `PrefillAttention` of a CPU, in float32 or bfloat16, and the attention of its vision tower.

    Its memory in one call: the keys and values once more, and the output.
    """

    def __init__(self, kernels: ctypes.CDLL) -> None:
        self._kernels = kernels

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: SequenceLengths
    ) -> torch.Tensor:
        return self._attend(query, key, value, lengths, query.shape[2] ** -0.5, is_causal=True)

    def attend_to_all(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tokens: int, scale: float
    ) -> torch.Tensor:
        """Attention of sequences of `tokens` tokens, in which each token sees all of its sequence."""
        count = len(query) // tokens
        starts = torch.arange(0, len(query) + 1, tokens, dtype=torch.int32)
        lengths = SequenceLengths(starts, starts, [tokens] * count, [tokens] * count)
        return self._attend(query, key, value, lengths, scale, is_causal=False)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: SequenceLengths, scale: float,
        is_causal: bool,
    ) -> torch.Tensor:  # fmt: skip
        assert query.dtype in ROW_DTYPES
        assert all(states.stride(2) == 1 and states.dtype == query.dtype for states in (query, key, value))
        tokens, heads, size = query.shape
        kv_heads, blocks = key.shape[1], sum(-(-length // BLOCK) for length in lengths.seqlens_k)
        output = query.new_empty(tokens, heads, size)
        packed_keys = query.new_empty(kv_heads * blocks * (size + size % 2) * BLOCK)
        packed_values = query.new_empty(kv_heads * blocks * -(-size // BLOCK) * BLOCK * BLOCK)
        layer = _PrefillLayer(
            *map(pointer, (query, key, value, output, packed_keys, packed_values)),
            pointer(lengths.cu_seqlens_q), pointer(lengths.cu_seqlens_k), len(lengths.seqlens_q), heads, kv_heads, size,
            blocks, *(stride for states in (query, key, value) for stride in states.stride()[:2]), scale, is_causal,
            query.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        self._kernels.llava_prefill(ctypes.byref(layer))
        return output
