"""Programmatic dependent launch (PDL): a kernel starts while the previous one ends, and waits before it uses results.

A decode step is hundreds of short kernels, and between two of them the device idles for a few microseconds. From sm_90
on, a kernel may be launched before the previous one has ended (CUDA C++ Programming Guide, Programmatic Dependent
Launch). Before it reads or writes anything that an earlier kernel uses, except weights and tables, it must call
`gdc_wait`.
"""

from functools import cache
from typing import Any

import torch

PDL_CAPABILITY = (9, 0)


@cache
def _supports_pdl(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= PDL_CAPABILITY


def pdl_options(tensor: torch.Tensor) -> dict[str, Any]:
    """Returns the launch arguments, for the tensor's device, of a kernel that has the constant USE_PDL."""
    return {"USE_PDL": True, "launch_pdl": True} if _supports_pdl(tensor.device) else {"USE_PDL": False}
