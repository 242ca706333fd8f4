"""LLaMA over packed rows: transformers' weights, without its masks, caches and batch dimension.

All tokens of a step stand in one matrix, whatever sequence they belong to; only attention tells sequences apart
(LLaMA, Touvron et al. 2023, arXiv:2302.13971; transformers modeling_llama.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu
from transformers import LlamaModel

from ..weights.nf4 import PackedLinear
from .attention import Attend


class Decoder:
    """Layers of a LlamaModel that lie on one device; all of them lead from embeddings to before the final norm.

    Projections that read the same input are joined, so that a layer takes few, large products: the model's own
    weights become views of the joined ones.
    """

    def __init__(self, model: LlamaModel, layers: Sequence[nn.Module], device: torch.device) -> None:
        config = model.config
        self._head_dim: int = config.head_dim
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._layers = [_Layer(layer) for layer in layers]
        positions = torch.arange(config.max_position_embeddings, device=model.device)
        example = torch.empty(0, dtype=model.dtype, device=model.device)
        cos, sin = model.rotary_emb(example, positions[None])
        self._cos, self._sin = cos[0].to(device), sin[0].to(device)  # (context, head size)

    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`hidden` (tokens, hidden size) at `positions` (tokens,) in their sequences, to the same shape."""
        cos, sin = self._cos[positions, None], self._sin[positions, None]  # (tokens, 1, head size)
        rotating = self._num_heads + self._num_kv_heads
        for number, layer in enumerate(self._layers):
            # (tokens, query, key and value heads, head size)
            heads = layer.qkv(layer.attention_norm(hidden)).view(len(hidden), -1, self._head_dim)
            rotated = _rotated(heads[:, :rotating], cos, sin)
            query, key = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
            attended = attend(number, query, key, heads[:, rotating:])
            hidden = hidden + layer.output(attended.flatten(1))
            gate, up = layer.gate_up(layer.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(silu(gate).mul_(up))
        return hidden


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = attention.o_proj
        self.gate_up = _joined([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj
        self.attention_norm = _Norm(layer.input_layernorm)
        self.mlp_norm = _Norm(layer.post_attention_layernorm)


def _joined(parts: list[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear maps of one input as one; packed ones know themselves how."""
    return PackedLinear.joined(parts) if isinstance(parts[0], PackedLinear) else _Joined(parts)


class _Joined:
    def __init__(self, parts: list[nn.Linear]) -> None:
        self._weight = torch.cat([part.weight.detach() for part in parts])
        rows = 0
        for part in parts:  # so that the weights are not there twice
            part.weight.data = self._weight[rows : rows + part.out_features]
            rows += part.out_features
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        self._bias = torch.cat(biases) if biases else None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return linear(states, self._weight, self._bias)


class _Norm:
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in one operation."""

    def __init__(self, norm: Any) -> None:
        self._weight: torch.Tensor = norm.weight
        self._eps: float = norm.variance_epsilon

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, self._weight.shape, self._weight, self._eps)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves paired as in transformers (RoFormer, Su et al. 2021, arXiv:2104.09864)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
