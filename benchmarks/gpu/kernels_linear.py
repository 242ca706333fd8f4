"""The linear layers of few rows, each with what it takes in on its way, beside torch's `linear` without that."""

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import silu

from llava_serving.model.kernels.linear import MAX_ROWS, linear

from .poison import poisoned
from .reference import relative_error, rms_normed
from .sizes import Shape, Sizes

EPSILON = 1e-6
HEAD_MULTIPLE = 8  # see llava_serving.model.lm_head
# Which norm their input, which make SwiGLU of their output, and which add it to the residual.
LAYERS = {
    "qkv": {"norm"}, "o": {"add_to"}, "gate_up": {"norm", "gates"}, "down": {"add_to"}, "head": {"norm"},
}  # fmt: skip
CaseParts = tuple[str, int, int, Callable[[int], object], float | None]


def cases(sizes: Sizes, name: str) -> Iterator[CaseParts]:
    """Triton's at 1 row and at as many as it takes; torch's at the same and at the largest batch."""
    out_features, in_features = _shape(sizes.shape, name)
    weight_bytes = out_features * in_features * sizes.dtype.itemsize
    copies = max(2, -(-sizes.rotated_bytes // weight_bytes))
    weights = torch.empty(copies, out_features, in_features, dtype=sizes.dtype, device=sizes.device)
    weights.normal_(0, in_features**-0.5)
    fused_rows = min(MAX_ROWS, sizes.batches[1])
    for rows in (1, fused_rows):
        yield _triton(sizes, name, rows, weights)
    for rows in (1, fused_rows, sizes.batches[-1]):
        yield _torch(sizes, name, rows, weights)


def _shape(shape: Shape, name: str) -> tuple[int, int]:
    """(out, in) of a layer's weight."""
    head = -(-shape.vocabulary // HEAD_MULTIPLE) * HEAD_MULTIPLE
    return {
        "qkv": (3 * shape.hidden, shape.hidden), "o": (shape.hidden, shape.hidden),
        "gate_up": (2 * shape.intermediate, shape.hidden), "down": (shape.hidden, shape.intermediate),
        "head": (head, shape.hidden),
    }[name]  # fmt: skip


def _triton(sizes: Sizes, name: str, rows: int, weights: torch.Tensor) -> CaseParts:
    x = torch.randn(rows, weights.shape[2], device=sizes.device).to(sizes.dtype)
    does = LAYERS[name]
    norm = 1 + torch.randn_like(x[0]) / 8 if "norm" in does else None
    sums = torch.randn(rows, weights.shape[1], device=sizes.device).to(sizes.dtype) if "add_to" in does else None

    def run(number: int) -> torch.Tensor:
        weight = weights[number % len(weights)]
        return linear(x, weight, None, norm, EPSILON, gates="gates" in does, add_to=sums)

    states = x.double() if norm is None else rms_normed(x, norm, EPSILON)
    expected = states @ weights[0].double().t()
    if "gates" in does:
        gate, up = expected.chunk(2, dim=-1)
        expected = silu(gate) * up
    if sums is not None:
        expected += sums.double()
    with poisoned():
        error = relative_error(run(0), expected)
    return f"linear {name}", rows, weights[0].nbytes, run, error


def _torch(sizes: Sizes, name: str, rows: int, weights: torch.Tensor) -> CaseParts:
    x = torch.randn(rows, weights.shape[2], device=sizes.device).to(sizes.dtype)
    error = relative_error(torch_linear(x, weights[0]), x.double() @ weights[0].double().t())
    return (
        f"torch linear {name}", rows, weights[0].nbytes, lambda number: torch_linear(x, weights[number % len(weights)]),
        error,
    )  # fmt: skip
