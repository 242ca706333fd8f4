"""LLaMA over packed rows: transformers' weights, without its masks, caches and batch dimension.

One matrix holds all tokens of a step, of whatever sequence. Only attention distinguishes sequences (LLaMA, Touvron et
al. 2023, arXiv:2302.13971; transformers modeling_llama.py).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu

from .attention import Attend
from .fused_weights import fuse
from .int8_linear import Int8Linear
from .packed_linear import PackedLinear


class RMSNorm:
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in one operator."""

    def __init__(self, norm: Any) -> None:
        self.weight: torch.Tensor = norm.weight.detach()
        self.epsilon: float = norm.variance_epsilon

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return rms_norm(states, self.weight.shape, self.weight, self.epsilon)


class Linear:
    """One linear layer, or several with the same input fused.

    `weight` (out, in) is in the model's dtype, or int8 with a `scale` (out,), or None if it is packed in another form.
    """

    def __init__(self, linears: list[Any]) -> None:
        self._packed: PackedLinear | None = None
        self.weight: torch.Tensor | None = None
        self.scale: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        if isinstance(linears[0], PackedLinear):
            self._packed = linears[0].fuse(linears)
            if isinstance(self._packed, Int8Linear):
                self.weight, self.scale, self.bias = self._packed.weight, self._packed.scale, self._packed.bias
        else:
            self.weight, self.bias = fuse(linears)

    @property
    def rounds_inputs(self) -> bool:
        """Whether many rows of input are rounded to 8 bits."""
        return self._packed is not None and self._packed.rounds_inputs

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            output: torch.Tensor = self._packed(states)
            return output
        assert self.weight is not None
        return linear(states, self.weight, self.bias)


class DecoderLayer:
    """The weights of one decoder layer, with the projections that have the same input fused."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_layernorm = RMSNorm(layer.input_layernorm)
        self.qkv_proj = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = Linear([attention.o_proj])
        self.post_attention_layernorm = RMSNorm(layer.post_attention_layernorm)
        self.gate_up_proj = Linear([mlp.gate_proj, mlp.up_proj])
        self.down_proj = Linear([mlp.down_proj])

    @property
    def projections(self) -> tuple[Linear, Linear, Linear, Linear]:
        return self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj


class AddRMSNorm(Protocol):
    """Adds `update` to `hidden` in place, if there is one, and returns the RMSNorm of the sum, all (rows, size)."""

    def __call__(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, epsilon: float, /
    ) -> torch.Tensor: ...


def residual_forward(
    layers: Sequence[DecoderLayer],
    hidden: torch.Tensor,
    head_size: int,
    attend: Attend,
    add_rms_norm: AddRMSNorm,
    silu_product: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The `Forward` of kernels that add each residual in the norm after it.

    `silu_product` maps (rows, 2 * size), gate before up, to SiLU(gate) * up.
    """
    update = None
    for index, layer in enumerate(layers):
        norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        normed = add_rms_norm(hidden, update, norm.weight, norm.epsilon)
        heads = layer.qkv_proj(normed).view(len(hidden), -1, head_size)
        update = layer.o_proj(attend(index, heads).flatten(1))
        normed = add_rms_norm(hidden, update, mlp_norm.weight, mlp_norm.epsilon)
        update = layer.down_proj(silu_product(layer.gate_up_proj(normed)))
    return hidden if update is None else hidden.add_(update)


class LayerModules(Protocol):
    """What `torch_forward` calls of a layer. Each method maps (tokens, in features) to (tokens, out features)."""

    def input_layernorm(self, hidden: torch.Tensor, /) -> torch.Tensor: ...
    def qkv_proj(self, states: torch.Tensor, /) -> torch.Tensor: ...
    def o_proj(self, attended: torch.Tensor, /) -> torch.Tensor: ...
    def post_attention_layernorm(self, hidden: torch.Tensor, /) -> torch.Tensor: ...
    def gate_up_proj(self, states: torch.Tensor, /) -> torch.Tensor: ...
    def down_proj(self, product: torch.Tensor, /) -> torch.Tensor: ...


class Forward(Protocol):
    """Runs hidden states through decoder layers with a device's kernels."""

    def __call__(
        self, layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend
    ) -> torch.Tensor:
        """Maps `hidden` (tokens, hidden size), which may be overwritten, to the same shape."""
        ...


class Decoder:
    """The layers of a LlamaModel on one device. All layers together map embeddings to the input of the final norm."""

    def __init__(self, layers: Sequence[nn.Module], head_size: int, forward: Forward) -> None:
        self._layers = [DecoderLayer(layer) for layer in layers]
        self._head_size = head_size
        self._forward = forward

    def __call__(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Maps `hidden` (tokens, hidden size), which may be overwritten, to the same shape."""
        return self._forward(self._layers, hidden, self._head_size, attend)


def torch_forward(layers: Sequence[LayerModules], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    """The `Forward` by torch's operators, on any device."""
    for index, layer in enumerate(layers):
        heads = layer.qkv_proj(layer.input_layernorm(hidden)).view(len(hidden), -1, head_size)
        hidden = hidden + layer.o_proj(attend(index, heads).flatten(1))
        gate, up = layer.gate_up_proj(layer.post_attention_layernorm(hidden)).chunk(2, dim=-1)
        hidden = hidden + layer.down_proj(silu(gate).mul_(up))
    return hidden
