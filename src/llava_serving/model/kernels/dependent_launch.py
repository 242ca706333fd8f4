"""Programmatic dependent launch: a kernel starts while the one before it drains, and waits where it needs its results.

A decode step is hundreds of short kernels, and the device idles a few microseconds between two of them. From sm_90 on a
kernel may be launched early (CUDA C++ Programming Guide, Programmatic Dependent Launch). It then must call `gdc_wait`
before it reads or writes anything that an earlier kernel touches, weights and tables apart.
"""

from functools import cache
from typing import Any

import torch

SINCE = (9, 0)


@cache
def _starts_early(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= SINCE


def early(tensor: torch.Tensor) -> dict[str, Any]:
    """The launch arguments of a kernel on the tensor's device that has a constant EARLY."""
    return {"EARLY": True, "launch_pdl": True} if _starts_early(tensor.device) else {"EARLY": False}
