"""The memory bandwidth of a copy and of a read of a few GB, which the other phases are compared with."""

from typing import Any

import torch

from .context import Context
from .timing import seconds_per_call


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    source = torch.empty(sizes.buffer_bytes // 4, dtype=torch.int32, device=sizes.device).random_()
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds_per_call(lambda _: target.copy_(source), sizes.device, calls=3)
    read = source.nbytes / seconds_per_call(lambda _: source.max(), sizes.device, calls=3)
    context.read_bandwidth = read
    context.report(f"bandwidth: copy {copy / 1e12:.3f} TB/s, read {read / 1e12:.3f} TB/s")
    return {
        "bytes": source.nbytes, "copy": context.rate(copy, 1.0), "read": context.rate(read, 1.0),
        "holds": torch.equal(source, target),
    }  # fmt: skip
