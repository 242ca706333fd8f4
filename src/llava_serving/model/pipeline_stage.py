"""The layers of one device, with their keys and values: a model on one GPU is one stage, on several one for each."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from transformers import LlamaModel

from . import prefill_attention as prefill
from .attention import Attend, Attention
from .backend import Backend
from .cpu_attention import CpuAttention
from .decoder import Decoder
from .kv_cache import KVCache
from .paged_attention import PagedAttention

Layers = Sequence[nn.Module]


class Stage:
    """Takes all tokens of a step through its layers."""

    def __init__(self, model: LlamaModel, layers: Layers, num_blocks: int, backend: Backend) -> None:
        config = model.config
        self.device = device_of(layers)
        self.cache = KVCache(config, len(layers), num_blocks, model.dtype, self.device)
        cos, sin = rotary_tables(model, self.device)
        self.attention: Attention
        if backend.paged is None:
            self.attention = CpuAttention(self.cache, cos, sin)
        else:
            kernel = prefill.choose(self.device, model.dtype, config.head_dim)
            self.attention = PagedAttention(self.cache, cos, sin, backend.paged, kernel)
        self._decode = Decoder(layers, config.head_dim, backend.forward)

    def __call__(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`hidden` (tokens, hidden size), on any device, to the same shape on the stage's."""
        return self._decode(hidden.to(self.device), attend)


def rotary_tables(model: LlamaModel, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, each (context, head size), as transformers computes them."""
    positions = torch.arange(model.config.max_position_embeddings, device=model.device)
    example = torch.empty(0, dtype=model.dtype, device=model.device)
    cos, sin = model.rotary_emb(example, positions[None])
    return cos[0].to(device).contiguous(), sin[0].to(device).contiguous()


def group_by_device(model: LlamaModel) -> list[Layers]:
    """The model's layers in order, those side by side on one device together."""
    return [list(layers) for _, layers in groupby(model.layers, key=lambda layer: device_of([layer]))]


def device_of(layers: Layers) -> torch.device:
    return next(layers[0].parameters()).device
