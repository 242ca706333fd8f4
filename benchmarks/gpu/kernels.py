"""Each Triton kernel at the model's shapes: how long, how much of the bandwidth, and how far from float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import kernels_attention, kernels_linear, kernels_rows
from .context import Context
from .timing import seconds_each

# Relative to the reference's norm: several times what rounding to the dtype leaves.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """`run` is told which of the copies that take turns to use. `error` is None where there is nothing to hold."""

    kernel: str
    rows: int
    num_bytes: int
    run: Callable[[int], object]
    error: float | None = None


def measure(context: Context) -> dict[str, Any]:
    rows = []
    for case in _cases(context):
        seconds = seconds_each(case.run, context.sizes.device)
        rate = context.rate(case.num_bytes, seconds)
        rows.append(
            {"kernel": case.kernel, "rows": case.rows, "microseconds": seconds * 1e6, "bytes": case.num_bytes}
            | rate
            | {"relative_error": case.error}
        )
        error = "" if case.error is None else f", error {case.error:.1e}"
        context.say(f"{case.kernel}, {case.rows}: {seconds * 1e6:.1f} us, {rate['tb_per_second']:.2f} TB/s{error}")
    tolerance = TOLERANCE[context.sizes.dtype]
    holds = all(row["relative_error"] is None or row["relative_error"] <= tolerance for row in rows)  # NaN is not
    return {"dtype": str(context.sizes.dtype), "tolerance": tolerance, "holds": holds, "rows": rows}


def _cases(context: Context) -> Iterator[Case]:
    """One at a time, so that only one's memory is held."""
    sizes = context.sizes
    for rows in sizes.batches:
        yield Case(*kernels_attention.decode(sizes, rows))
        context.tidy()
    for rows in sizes.batches:
        for make in (kernels_rows.norm, kernels_rows.silu, kernels_rows.rotate):
            yield Case(*make(sizes, rows))
    for name in kernels_linear.LAYERS:
        for case in kernels_linear.cases(sizes, name):
            yield Case(*case)
        context.tidy()
