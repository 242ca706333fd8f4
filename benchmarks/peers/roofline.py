"""What this machine can do at most: bytes read per second, and operations per second in each type.

A decode step of one sequence reads every weight once, so bytes divided by bandwidth bound its time from below. A
prompt computes each weight with hundreds of rows, so operations divided by their rate bound it.
"""

import time
from collections.abc import Callable

import torch

READ_BYTES, SMALL_READ_BYTES = 2**28, 2**22
REPEATS = 25
ROWS, OUT, IN = 512, 5632, 2048


def measure_roofline(small: bool) -> dict[str, float]:
    """Returns GB/s, and GFLOP/s of a product in float32 and bfloat16. The best of several repeats: a limit, no mean."""
    data = torch.ones((SMALL_READ_BYTES if small else READ_BYTES) // 4)
    seconds = _best(lambda: data.sum())
    figures = {"read_gb_per_second": data.numel() * 4 / seconds / 1e9}
    rows, out = (8, 64) if small else (ROWS, OUT)
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        x, weight = torch.randn(rows, IN).to(dtype), torch.randn(out, IN).to(dtype)
        seconds = _best(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
        figures[f"{name}_gflop_per_second"] = 2 * rows * out * IN / seconds / 1e9
    return figures


def _best(function: Callable[[], object]) -> float:
    function()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
