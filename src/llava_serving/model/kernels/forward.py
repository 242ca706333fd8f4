"""A decoder layer in at most nine launches: `decoder.torch_forward` by Triton's kernels beside cuBLAS."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm, silu

from ..attention import Attend
from ..decoder import Layer, Linear, Norm
from .activation import silu_product
from .linear import MAX_ROWS, linear
from .norm import add_rms_norm

# Triton multiplies matrices on tensor cores from here on.
FEW_ROWS_CAPABILITY = (8, 0)


class TritonForward:
    """Batches of `max_fused_rows` at most take the linear layers of `kernels.linear`, larger ones cuBLAS's."""

    def __init__(self, max_fused_rows: int) -> None:
        self._max_fused_rows = max_fused_rows

    def __call__(self, layers: Sequence[Layer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
        if len(hidden) <= self._max_fused_rows and layers[0].qkv.weight is not None:
            return _few_rows(layers, hidden, head_size, attend)
        return _many_rows(layers, hidden, head_size, attend)

    def project(self, hidden: torch.Tensor, norm: Norm, linear_map: Linear) -> torch.Tensor:
        """The final norm and the map to logits: `head.Project`."""
        if len(hidden) <= self._max_fused_rows and linear_map.weight is not None:
            return linear(hidden, linear_map.weight, linear_map.bias, norm.weight, norm.epsilon)
        return linear_map(add_rms_norm(hidden, None, norm.weight, norm.epsilon))


def max_fused_rows(device: torch.device) -> int:
    """What `TritonForward` is given for a device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FEW_ROWS_CAPABILITY:
        return 1
    return MAX_ROWS


def linear_error(device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative error of `kernels.linear` against float64, on one row and on two, with all it can do."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    errors = []
    for rows in (1, 2):
        x, norm, weight = normal(rows, 256), normal(256), normal(64, 256) / 16
        normed = rms_norm(x.double(), norm.shape, norm.double(), 1e-6)
        gate, up = (normed @ weight.double().t()).chunk(2, -1)
        expected = silu(gate) * up
        got = linear(x, weight, None, norm, 1e-6, gates=True)
        errors.append(float((got.double() - expected).norm() / expected.norm()))
    return max(errors)


def _few_rows(layers: Sequence[Layer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    for number, layer in enumerate(layers):
        weights = [layer.qkv.weight, layer.output.weight, layer.gate_up.weight, layer.down.weight]
        qkv, output, gate_up, down = (weight for weight in weights if weight is not None)
        norm, mlp_norm = layer.attention_norm, layer.mlp_norm
        heads = linear(hidden, qkv, layer.qkv.bias, norm.weight, norm.epsilon).view(len(hidden), -1, head_size)
        linear(attend(number, heads).flatten(1), output, layer.output.bias, add_to=hidden)
        product = linear(hidden, gate_up, layer.gate_up.bias, mlp_norm.weight, mlp_norm.epsilon, gates=True)
        linear(product, down, layer.down.bias, add_to=hidden)
    return hidden


def _many_rows(layers: Sequence[Layer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    update = None
    for number, layer in enumerate(layers):
        normed = add_rms_norm(hidden, update, layer.attention_norm.weight, layer.attention_norm.epsilon)
        heads = layer.qkv(normed).view(len(hidden), -1, head_size)
        update = layer.output(attend(number, heads).flatten(1))
        normed = add_rms_norm(hidden, update, layer.mlp_norm.weight, layer.mlp_norm.epsilon)
        update = layer.down(silu_product(layer.gate_up(normed)))
    return hidden if update is None else hidden.add_(update)
