"""The decoder layers of one device with their KV cache: one stage on a single GPU, one per GPU on several."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from transformers import LlamaModel

from .attention import Attend, Attention
from .backend import Backend
from .cpu_attention import CpuAttention
from .decoder import Decoder
from .kv_cache import KVCache
from .paged_attention import PagedAttention
from .prefill_attention import choose_prefill_attention
from .rotary import rotary_tables

Layers = Sequence[nn.Module]


class PipelineStage:
    """Runs all tokens of a step through its layers."""

    def __init__(
        self, model: LlamaModel, layers: Layers, num_blocks: int, cache_dtype: torch.dtype, backend: Backend
    ) -> None:
        config = model.config
        self.device = device_of_layers(layers)
        self.cache = KVCache(config, len(layers), num_blocks, cache_dtype, self.device)
        cos, sin = rotary_tables(model, self.device)
        self.attention: Attention
        if backend.paged is None:
            self.attention = CpuAttention(self.cache, cos, sin)
        else:
            prefill = backend.prefill or choose_prefill_attention(self.device, model.dtype, config.head_dim)
            self.attention = PagedAttention(self.cache, cos, sin, backend.paged, prefill)
        self._decoder = Decoder(layers, config.head_dim, backend.forward)

    def __call__(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Takes `hidden` (tokens, hidden size) from any device and returns the same shape on the stage's device."""
        return self._decoder(hidden.to(self.device), attend)


def group_by_device(model: LlamaModel) -> list[Layers]:
    """Returns the model's layers in order, with consecutive layers of one device in one group."""
    return [list(layers) for _, layers in groupby(model.layers, key=lambda layer: device_of_layers([layer]))]


def device_of_layers(layers: Layers) -> torch.device:
    return next(layers[0].parameters()).device
