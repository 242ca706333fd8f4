"""The layers of one device, with their keys and values: a model on one GPU is one stage, on several one for each."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from transformers import LlamaModel

from .attention import Attention, Rows, TorchAttention
from .decoder import Decoder
from .kv_cache import KVCache

Layers = Sequence[nn.Module]


class Stage:
    """Takes all tokens of a step through its layers."""

    def __init__(self, model: LlamaModel, layers: Layers, num_blocks: int) -> None:
        self.device = device_of(layers)
        self.cache = KVCache(model.config, len(layers), num_blocks, model.dtype, self.device)
        self._attention: Attention = TorchAttention(self.cache)
        self._decode = Decoder(model, layers, self.device)

    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor, rows: list[Rows]) -> torch.Tensor:
        """`hidden` (tokens, hidden size) at `positions` (tokens,), on any device, to the same shape on the stage's."""
        return self._decode(hidden.to(self.device), positions.to(self.device), self._attention.plan(rows))


def by_device(model: LlamaModel) -> list[Layers]:
    """The model's layers in order, those side by side on one device together."""
    return [list(layers) for _, layers in groupby(model.layers, key=lambda layer: device_of([layer]))]


def device_of(layers: Layers) -> torch.device:
    return next(layers[0].parameters()).device
