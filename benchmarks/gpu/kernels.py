"""Each Triton kernel at the model's shapes: its time, its share of the bandwidth, and its error against float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import kernels_attention, kernels_linear, kernels_row_wise
from .context import Context
from .timing import seconds_per_call

# Relative to the reference's norm: several times what rounding to the dtype causes.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """`run` receives the index of the call, which selects one of several copies of the inputs."""

    kernel: str
    rows: int
    num_bytes: int
    run: Callable[[int], object]
    error: float


def measure(context: Context) -> dict[str, Any]:
    rows = measure_cases(context, _cases(context))
    tolerance = TOLERANCE[context.sizes.dtype]
    return {"dtype": str(context.sizes.dtype), "tolerance": tolerance, "holds": all_hold(context, rows), "rows": rows}


def all_hold(context: Context, rows: list[dict[str, Any]]) -> bool:
    """Returns whether no error is above the tolerance or NaN."""
    return all(row["relative_error"] <= TOLERANCE[context.sizes.dtype] for row in rows)


def measure_cases(context: Context, cases: Iterator[Case]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        seconds = seconds_per_call(case.run, context.sizes.device)
        rate = context.rate(case.num_bytes, seconds)
        rows.append(
            {"kernel": case.kernel, "rows": case.rows, "microseconds": seconds * 1e6, "bytes": case.num_bytes}
            | rate
            | {"relative_error": case.error}
        )
        line = f"{case.kernel}, {case.rows}: {seconds * 1e6:.1f} us, {rate['tb_per_second']:.2f} TB/s"
        context.report(f"{line}, error {case.error:.1e}")
    return rows


def _cases(context: Context) -> Iterator[Case]:
    """Yields one case at a time, so that only its memory is allocated."""
    sizes = context.sizes
    for rows in sizes.batches:
        yield Case(*kernels_attention.decode(sizes, rows))
        context.free_memory()
        yield Case(*kernels_attention.decode_int8(sizes, rows))
        context.free_memory()
    for rows in sizes.batches:
        for make in (kernels_row_wise.norm, kernels_row_wise.silu, kernels_row_wise.rotate):
            yield Case(*make(sizes, rows))
    for name in kernels_linear.LAYERS:
        for case in kernels_linear.cases(sizes, name):
            yield Case(*case)
        context.free_memory()
