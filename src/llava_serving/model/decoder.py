"""LLaMA over packed rows: transformers' weights, without its masks, caches and batch dimension.

All tokens of a step stand in one matrix, whatever sequence they belong to; only attention tells sequences apart
(LLaMA, Touvron et al. 2023, arXiv:2302.13971; transformers modeling_llama.py).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu

from .attention import Attend
from .fused_weights import joined
from .nf4 import PackedLinear


class Norm:
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in one operation."""

    def __init__(self, norm: Any) -> None:
        self.weight: torch.Tensor = norm.weight.detach()
        self.epsilon: float = norm.variance_epsilon

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, self.weight.shape, self.weight, self.epsilon)


class Linear:
    """One linear map, or several of the same input joined; `weight` (out, in) is None where it is packed."""

    def __init__(self, parts: list[Any]) -> None:
        self._packed: PackedLinear | None = None
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        if isinstance(parts[0], PackedLinear):
            self._packed = PackedLinear.joined(parts)
        else:
            self.weight, self.bias = joined(parts)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            mapped: torch.Tensor = self._packed(states)
            return mapped
        assert self.weight is not None
        return linear(states, self.weight, self.bias)


class Layer:
    """The weights of one decoder layer, those that read the same input joined."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = Linear([attention.o_proj])
        self.gate_up = Linear([mlp.gate_proj, mlp.up_proj])
        self.down = Linear([mlp.down_proj])
        self.attention_norm = Norm(layer.input_layernorm)
        self.mlp_norm = Norm(layer.post_attention_layernorm)


class LayerMaps(Protocol):
    """What a forward pass needs of a layer: each maps (tokens, width) to (tokens, other width)."""

    def attention_norm(self, hidden: torch.Tensor, /) -> torch.Tensor: ...
    def qkv(self, states: torch.Tensor, /) -> torch.Tensor: ...
    def output(self, attended: torch.Tensor, /) -> torch.Tensor: ...
    def mlp_norm(self, hidden: torch.Tensor, /) -> torch.Tensor: ...
    def gate_up(self, states: torch.Tensor, /) -> torch.Tensor: ...
    def down(self, product: torch.Tensor, /) -> torch.Tensor: ...


class Forward(Protocol):
    """How a device takes hidden states through layers."""

    def __call__(self, layers: Sequence[Layer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
        """`hidden` (tokens, hidden size), which may be overwritten, to the same shape."""
        ...


class Decoder:
    """Layers of a LlamaModel that lie on one device; all of them lead from embeddings to before the final norm."""

    def __init__(self, layers: Sequence[nn.Module], head_size: int, forward: Forward) -> None:
        self._layers = [Layer(layer) for layer in layers]
        self._head_size = head_size
        self._forward = forward

    def __call__(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`hidden` (tokens, hidden size), which may be overwritten, to the same shape."""
        return self._forward(self._layers, hidden, self._head_size, attend)


def torch_forward(layers: Sequence[LayerMaps], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    """By torch's operators, on any device."""
    for number, layer in enumerate(layers):
        heads = layer.qkv(layer.attention_norm(hidden)).view(len(hidden), -1, head_size)
        hidden = hidden + layer.output(attend(number, heads).flatten(1))
        gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
        hidden = hidden + layer.down(silu(gate).mul_(up))
    return hidden
