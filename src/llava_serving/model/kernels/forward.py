"""A decoder layer in at most nine launches: `decoder.torch_forward` by Triton's kernels and cuBLAS."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm, silu

from ..attention import Attend
from ..decoder import DecoderLayer, Linear, RMSNorm, residual_forward
from ..int8_linear import MAX_EXACT_ROWS, Int8Linear
from .activation import silu_product
from .integer_product import integer_linear
from .linear import MAX_INT8_ROWS, MAX_ROWS, linear
from .norm import add_rms_norm, add_rms_norm_quantized
from .row_quantization import QuantizedRows, quantize_rows

# Triton multiplies matrices on tensor cores from this compute capability on.
TENSOR_CORE_CAPABILITY = (8, 0)


class TritonForward:
    """Batches of few rows use the linear layers of `kernels.linear`. For larger ones cuBLAS multiplies."""

    def __init__(self, uses_tensor_cores: bool) -> None:
        self._uses_tensor_cores = uses_tensor_cores

    def __call__(
        self, layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend
    ) -> torch.Tensor:
        if len(hidden) <= self._max_fused_rows(layers[0].qkv_proj):
            return _run_fused(layers, hidden, head_size, attend)
        if len(hidden) > MAX_EXACT_ROWS and all(projection.rounds_inputs for projection in layers[0].projections):
            return _run_rounded(layers, hidden, head_size, attend)
        return residual_forward(layers, hidden, head_size, attend, add_rms_norm, silu_product)

    def _max_fused_rows(self, projection: Linear) -> int:
        if projection.weight is None:
            return 0
        if not self._uses_tensor_cores:
            return 1
        return MAX_ROWS if projection.scale is None else MAX_INT8_ROWS

    def compute_logits(self, hidden: torch.Tensor, norm: RMSNorm, projection: Linear) -> torch.Tensor:
        """The final norm and the projection to logits, as in `lm_head.ComputeLogits`."""
        if len(hidden) <= self._max_fused_rows(projection):
            return _multiply(hidden, projection, norm)
        return projection(add_rms_norm(hidden, None, norm.weight, norm.epsilon))


def uses_tensor_cores(device: torch.device) -> bool:
    """Returns the argument of `TritonForward` for a device."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= TENSOR_CORE_CAPABILITY


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
        errors.append(_relative_error(result, expected))
    return max(errors)


def int8_error(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the largest relative error of layers with int8 weights against `Int8Linear`, with SwiGLU.

    It compares one row, few rows, and many rows if those multiply integers.
    """
    random = torch.Generator().manual_seed(0)
    (layer,) = Int8Linear.empty_fused([torch.nn.Linear(256, 64, bias=False, device="meta")], device, dtype)
    layer.fill(0, torch.randn(64, 256, generator=random).to(device) / 16)
    errors = []
    for rows in (1, 2, MAX_EXACT_ROWS, MAX_EXACT_ROWS + 1):
        x = torch.randn(rows, 256, generator=random).to(device, dtype)
        if rows <= MAX_EXACT_ROWS:
            result = linear(x, layer.weight, swiglu=True, scale=layer.scale)
        elif layer.rounds_inputs:
            result = integer_linear(quantize_rows(x), layer.weight, layer.scale, None, dtype, swiglu=True)
        else:
            continue
        gate, up = layer(x).double().chunk(2, -1)
        errors.append(_relative_error(result, silu(gate) * up))
    return max(errors)


def _relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())


def _run_fused(layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    for index, layer in enumerate(layers):
        heads = _multiply(hidden, layer.qkv_proj, layer.input_layernorm).view(len(hidden), -1, head_size)
        _multiply(attend(index, heads).flatten(1), layer.o_proj, add_to=hidden)
        product = _multiply(hidden, layer.gate_up_proj, layer.post_attention_layernorm, swiglu=True)
        _multiply(product, layer.down_proj, add_to=hidden)
    return hidden


def _multiply(
    x: torch.Tensor, projection: Linear, norm: RMSNorm | None = None, swiglu: bool = False,
    add_to: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    assert projection.weight is not None
    weight, epsilon = (None, 0.0) if norm is None else (norm.weight, norm.epsilon)
    return linear(x, projection.weight, projection.bias, weight, epsilon, swiglu, add_to, projection.scale)


def _run_rounded(layers: Sequence[DecoderLayer], hidden: torch.Tensor, head_size: int, attend: Attend) -> torch.Tensor:
    """Multiplies integers: the weights are int8, and the rows are rounded to it."""

    def multiply(rows: QuantizedRows, projection: Linear, swiglu: bool = False) -> torch.Tensor:
        assert projection.weight is not None
        assert projection.scale is not None
        return integer_linear(rows, projection.weight, projection.scale, projection.bias, hidden.dtype, swiglu)

    update = None
    for index, layer in enumerate(layers):
        norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        normed = add_rms_norm_quantized(hidden, update, norm.weight, norm.epsilon)
        heads = multiply(normed, layer.qkv_proj).view(len(hidden), -1, head_size)
        update = multiply(quantize_rows(attend(index, heads).flatten(1)), layer.o_proj)
        normed = add_rms_norm_quantized(hidden, update, mlp_norm.weight, mlp_norm.epsilon)
        product = multiply(normed, layer.gate_up_proj, swiglu=True)
        update = multiply(quantize_rows(product), layer.down_proj)
    return hidden if update is None else hidden.add_(update)
