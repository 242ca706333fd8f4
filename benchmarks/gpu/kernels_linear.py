"""The linear layers for few rows with their fused operations, and torch's `linear` without these."""

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import silu

from llava_serving.model.kernels.linear import MAX_ROWS, linear

from .poison import poisoned
from .reference import relative_error, rms_norm
from .sizes import Shape, Sizes

EPSILON = 1e-6
VOCAB_PADDING = 8  # see llava_serving.model.lm_head
# The operations fused with each layer: the norm of its input, SwiGLU, or the addition to the residual.
LAYERS = {
    "qkv": {"norm"}, "o": {"add_to"}, "gate_up": {"norm", "swiglu"}, "down": {"add_to"}, "head": {"norm"},
}  # fmt: skip
CaseParts = tuple[str, int, int, Callable[[int], object], float]


def cases(sizes: Sizes, name: str) -> Iterator[CaseParts]:
    """Yields Triton's kernel at 1 row and at its most, and torch's at these rows and at the largest batch."""
    out_features, in_features = weight_shape(sizes.shape, name)
    weight_bytes = out_features * in_features * sizes.dtype.itemsize
    copies = max(2, -(-sizes.rotated_bytes // weight_bytes))
    weights = torch.empty(copies, out_features, in_features, dtype=sizes.dtype, device=sizes.device)
    weights.normal_(0, in_features**-0.5)
    max_fused_rows = min(MAX_ROWS, sizes.batches[1])
    for rows in (1, max_fused_rows):
        yield _triton_case(sizes, name, rows, weights)
    for rows in (1, max_fused_rows, sizes.batches[-1]):
        yield _torch_case(sizes, name, rows, weights)


def weight_shape(shape: Shape, name: str) -> tuple[int, int]:
    """Returns (out features, in features)."""
    padded_vocab_size = -(-shape.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    return {
        "qkv": (3 * shape.hidden, shape.hidden), "o": (shape.hidden, shape.hidden),
        "gate_up": (2 * shape.intermediate, shape.hidden), "down": (shape.hidden, shape.intermediate),
        "head": (padded_vocab_size, shape.hidden),
    }[name]  # fmt: skip


def _triton_case(sizes: Sizes, name: str, rows: int, weights: torch.Tensor) -> CaseParts:
    x = torch.randn(rows, weights.shape[2], device=sizes.device).to(sizes.dtype)
    fused = LAYERS[name]
    norm = 1 + torch.randn_like(x[0]) / 8 if "norm" in fused else None
    residual = torch.randn(rows, weights.shape[1], device=sizes.device).to(sizes.dtype) if "add_to" in fused else None

    def run(call: int) -> torch.Tensor:
        weight = weights[call % len(weights)]
        return linear(x, weight, None, norm, EPSILON, swiglu="swiglu" in fused, add_to=residual)

    states = x.double() if norm is None else rms_norm(x, norm, EPSILON)
    expected = states @ weights[0].double().t()
    if "swiglu" in fused:
        gate, up = expected.chunk(2, dim=-1)
        expected = silu(gate) * up
    if residual is not None:
        expected += residual.double()
    with poisoned():
        error = relative_error(run(0), expected)
    return f"linear {name}", rows, weights[0].nbytes, run, error


def _torch_case(sizes: Sizes, name: str, rows: int, weights: torch.Tensor) -> CaseParts:
    x = torch.randn(rows, weights.shape[2], device=sizes.device).to(sizes.dtype)

    def run(call: int) -> torch.Tensor:
        return torch_linear(x, weights[call % len(weights)])

    error = relative_error(run(0), x.double() @ weights[0].double().t())
    return f"torch linear {name}", rows, weights[0].nbytes, run, error
