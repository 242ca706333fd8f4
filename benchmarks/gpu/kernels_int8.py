"""The linear layers with 8-bit weights: for few rows, and for as many as a prompt has."""

from collections.abc import Iterator

import torch
from torch.nn.functional import silu

from llava_serving.model.kernels.integer_product import integer_linear
from llava_serving.model.kernels.linear import MAX_INT8_ROWS, MAX_ROWS, linear
from llava_serving.model.kernels.row_quantization import quantize_rows

from .kernels_linear import EPSILON, CaseParts, weight_shape
from .kernels_linear import LAYERS as ALL_LAYERS
from .poison import poisoned
from .reference import relative_error, rms_norm
from .sizes import Sizes

LAYERS = [name for name in ALL_LAYERS if name != "head"]


def cases(sizes: Sizes, name: str) -> Iterator[CaseParts]:
    """Yields the kernel for few rows at 1 row, 16 and 64, and the product of integers for the longest prompt."""
    out_features, in_features = weight_shape(sizes.shape, name)
    copies = max(2, -(-sizes.rotated_bytes // (out_features * in_features)))
    shape = copies, out_features, in_features
    weights = torch.randint(-127, 128, shape, dtype=torch.int8, device=sizes.device)
    scale = (0.5 + torch.rand(out_features, device=sizes.device)) / (73 * in_features**0.5)
    for rows in (1, min(MAX_ROWS, sizes.batches[1]), MAX_INT8_ROWS):
        yield _few_rows(sizes, name, rows, weights, scale)
    for make in (_quantize, _many_rows):
        yield make(sizes, name, max(sizes.int8_prefills), weights, scale)


def _normal(sizes: Sizes, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=sizes.device).to(sizes.dtype)


def _few_rows(sizes: Sizes, name: str, rows: int, weights: torch.Tensor, scale: torch.Tensor) -> CaseParts:
    x, fused = _normal(sizes, rows, weights.shape[2]), ALL_LAYERS[name]
    norm = 1 + torch.randn_like(x[0]) / 8 if "norm" in fused else None
    residual = _normal(sizes, rows, weights.shape[1]) if "add_to" in fused else None

    def run(call: int) -> torch.Tensor:
        weight = weights[call % len(weights)]
        return linear(x, weight, None, norm, EPSILON, "swiglu" in fused, residual, scale)

    states = x.double() if norm is None else rms_norm(x, norm, EPSILON)
    expected = _exact(states, weights[0], scale, swiglu="swiglu" in fused)
    if residual is not None:
        expected += residual.double()
    with poisoned():
        error = relative_error(run(0), expected)
    return f"int8 linear {name}", rows, weights[0].nbytes, run, error


def _quantize(sizes: Sizes, name: str, rows: int, weights: torch.Tensor, _: torch.Tensor) -> CaseParts:
    """Its error is that of what the rounded values stand for, less the half step that rounding may cost."""
    x = _normal(sizes, rows, weights.shape[2])

    def run(_: int) -> object:
        return quantize_rows(x)

    rounded = quantize_rows(x)
    distance = (rounded.values.double() * rounded.scale.double()[:, None] - x.double()).abs()
    excess = (distance / rounded.scale.double()[:, None] - 0.5).clamp(min=0)
    return f"quantize rows of {name}", rows, x.nbytes + x.numel(), run, float(excess.max()) / 127


def _many_rows(sizes: Sizes, name: str, rows: int, weights: torch.Tensor, scale: torch.Tensor) -> CaseParts:
    """The product and its scaling. Bytes are the weight's, the rows', and those of the product in 32 bits and after."""
    x, swiglu = quantize_rows(_normal(sizes, rows, weights.shape[2])), "swiglu" in ALL_LAYERS[name]

    def run(call: int) -> torch.Tensor:
        return integer_linear(x, weights[call % len(weights)], scale, None, sizes.dtype, swiglu)

    states = x.values.double() * x.scale.double()[:, None]
    with poisoned():
        result = run(0)
    error = relative_error(result, _exact(states, weights[0], scale, swiglu))
    num_bytes = weights[0].nbytes + x.values.nbytes + 2 * 4 * rows * weights.shape[1] + result.nbytes
    return f"int8 product {name}", rows, num_bytes, run, error


def _exact(states: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, swiglu: bool) -> torch.Tensor:
    expected = states @ (weight.double() * scale.double()[:, None]).t()
    if not swiglu:
        return expected
    gate, up = expected.chunk(2, dim=-1)
    return silu(gate) * up
