"""The kernels between the linear layers. Their inputs are small, and stay in the device's cache as in a real step."""

from collections.abc import Callable

import torch
from torch.nn.functional import silu as torch_silu

from llava_serving.model.kernels.activation import silu_product
from llava_serving.model.kernels.norm import add_rms_norm
from llava_serving.model.kernels.rotary import rotate_and_cache
from llava_serving.model.kv_cache import LayerCache

from .poison import poisoned
from .reference import apply_rotary, relative_error, rms_norm, rotary_tables
from .sizes import Sizes

EPSILON = 1e-6
CaseParts = tuple[str, int, int, Callable[[int], object], float]


def _normal(sizes: Sizes, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=sizes.device).to(sizes.dtype)


def norm(sizes: Sizes, rows: int) -> CaseParts:
    residual, update = (_normal(sizes, rows, sizes.shape.hidden) for _ in range(2))
    weight, total = _normal(sizes, sizes.shape.hidden), residual + update

    def run(_: int) -> torch.Tensor:
        return add_rms_norm(residual, update, weight, EPSILON)

    with poisoned():
        actual = run(0)
    error = max(relative_error(actual, rms_norm(total, weight, EPSILON)), relative_error(residual, total))
    return "add_rms_norm", rows, 4 * residual.nbytes, run, error


def silu(sizes: Sizes, rows: int) -> CaseParts:
    gate_up = _normal(sizes, rows, 2 * sizes.shape.intermediate)
    gate, up = gate_up.double().chunk(2, dim=-1)
    with poisoned():
        actual = silu_product(gate_up)
    error = relative_error(actual, torch_silu(gate) * up)
    return "silu_product", rows, 3 * actual.nbytes, lambda _: silu_product(gate_up), error


def rotate(sizes: Sizes, rows: int) -> CaseParts:
    shape = sizes.shape
    heads = _normal(sizes, rows, 3 * shape.heads, shape.head_size)
    cos, sin = rotary_tables(shape.context, shape.head_size, sizes.dtype, sizes.device)
    positions = torch.randint(shape.context, (rows,), device=sizes.device)
    slots = torch.randperm(4 * rows, device=sizes.device)[:rows]
    cache_shape = (2, shape.heads, 4 * rows, shape.head_size)
    cache = LayerCache(*torch.full(cache_shape, torch.nan, dtype=sizes.dtype, device=sizes.device))
    query, key, value = heads.clone().chunk(3, dim=1)

    def run(_: int) -> None:
        rotate_and_cache(heads, cos, sin, positions, slots, cache)

    run(0)
    query, key = (apply_rotary(states, cos[positions], sin[positions]) for states in (query, key))
    expected = torch.cat((query, key, value.double(), key, value.double()), 1)
    error = relative_error(torch.cat((heads, *cache.gather(slots, sizes.dtype)), 1), expected)
    return "rotate_and_cache", rows, 7 * value.nbytes, run, error
