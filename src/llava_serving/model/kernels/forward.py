"""A decoder layer in at most nine launches: `decoder.torch_forward` by Triton's kernels and cuBLAS."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm, silu

from ..attention import Attend
from ..decoder import DecoderLayer, Linear, RMSNorm, residual_forward
from .activation import silu_product
from .linear import MAX_ROWS, linear
from .norm import add_rms_norm

# Triton multiplies matrices on tensor cores from this compute capability on.
TENSOR_CORE_CAPABILITY = (8, 0)


class TritonForward:
    """Batches of at most `max_fused_rows` rows use the linear layers of `kernels.linear`, larger ones use cuBLAS."""

    def __init__(self, max_fused_rows: int) -> None:
        self._max_fused_rows = max_fused_rows

    def __call__(
        self, layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend
    ) -> torch.Tensor:
        if len(hidden) <= self._max_fused_rows and layers[0].qkv_proj.weight is not None:
            return _run_fused(layers, hidden, head_size, attend)
        return residual_forward(layers, hidden, head_size, attend, add_rms_norm, silu_product)

    def compute_logits(self, hidden: torch.Tensor, norm: RMSNorm, projection: Linear) -> torch.Tensor:
        """The final norm and the projection to logits, as in `lm_head.ComputeLogits`."""
        if len(hidden) <= self._max_fused_rows and projection.weight is not None:
            return linear(hidden, projection.weight, projection.bias, norm.weight, norm.epsilon)
        return projection(add_rms_norm(hidden, None, norm.weight, norm.epsilon))


def max_fused_rows(device: torch.device) -> int:
    """Returns the argument of `TritonForward` for a device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < TENSOR_CORE_CAPABILITY:
        return 1
    return MAX_ROWS


def linear_error(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the larger relative error of `kernels.linear` against float64 for one row and for two, with a norm and
    SwiGLU."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    errors = []
    for rows in (1, 2):
        x, norm, weight = normal(rows, 256), normal(256), normal(64, 256) / 16
        normed = rms_norm(x.double(), norm.shape, norm.double(), 1e-6)
        gate, up = (normed @ weight.double().t()).chunk(2, -1)
        expected = silu(gate) * up
        result = linear(x, weight, None, norm, 1e-6, swiglu=True)
        errors.append(float((result.double() - expected).norm() / expected.norm()))
    return max(errors)


def _run_fused(layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    for index, layer in enumerate(layers):
        projections = layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj
        qkv, o, gate_up, down = (projection.weight for projection in projections if projection.weight is not None)
        norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        heads = linear(hidden, qkv, layer.qkv_proj.bias, norm.weight, norm.epsilon).view(len(hidden), -1, head_size)
        linear(attend(index, heads).flatten(1), o, layer.o_proj.bias, add_to=hidden)
        product = linear(hidden, gate_up, layer.gate_up_proj.bias, mlp_norm.weight, mlp_norm.epsilon, swiglu=True)
        linear(product, down, layer.down_proj.bias, add_to=hidden)
    return hidden
