"""A decoder layer by the compiled kernels: `decoder.torch_forward` in eight calls and the attention's."""

from collections.abc import Sequence

import torch

from ..attention import Attend
from ..decoder import DecoderLayer, Linear, RMSNorm
from .row_wise import add_rms_norm, silu_product


def c_forward(layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    """The `Forward` of a CPU. Each residual is added by the norm after it."""
    update = None
    for index, layer in enumerate(layers):
        norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        normed = add_rms_norm(hidden, update, norm.weight, norm.epsilon)
        heads = layer.qkv_proj(normed).view(len(hidden), -1, head_size)
        update = layer.o_proj(attend(index, heads).flatten(1))
        normed = add_rms_norm(hidden, update, mlp_norm.weight, mlp_norm.epsilon)
        update = layer.down_proj(silu_product(layer.gate_up_proj(normed)))
    return hidden if update is None else hidden.add_(update)


def c_logits(hidden: torch.Tensor, norm: RMSNorm, projection: Linear) -> torch.Tensor:
    """The `ComputeLogits` of a CPU."""
    return projection(add_rms_norm(hidden, None, norm.weight, norm.epsilon))
