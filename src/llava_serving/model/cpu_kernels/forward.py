"""A decoder layer by the compiled kernels: `decoder.torch_forward` in eight calls and the attention's."""

from collections.abc import Sequence

import torch

from ..attention import Attend
from ..decoder import DecoderLayer, Linear, RMSNorm, residual_forward
from .row_wise import add_rms_norm, silu_product


def c_forward(layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    """The `Forward` of a CPU."""
    return residual_forward(layers, hidden, head_size, attend, add_rms_norm, silu_product)


def c_logits(hidden: torch.Tensor, norm: RMSNorm, projection: Linear) -> torch.Tensor:
    """The `ComputeLogits` of a CPU."""
    return projection(add_rms_norm(hidden, None, norm.weight, norm.epsilon))
