"""Pinned memory that copies all arrays of a step from the host to the device at once."""

from collections.abc import Mapping

import numpy as np
import torch

ALIGNMENT = 16  # bytes: enough for Triton's vector loads and for every dtype of torch


class StagingBuffer:
    """Packs arrays into pinned memory and copies them to the device in one copy.

    Arrays of the same shapes and order have the same device addresses in every step, as a captured graph requires.
    Two host buffers alternate, because the copy of one step may still wait for the device while the host writes the
    next. The host writes a buffer again only after the buffer's own copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self._next = 0

    def reserve(self, num_bytes: int) -> None:
        """Allocates the buffers. The addresses of arrays that were staged before become invalid."""
        self._host = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._on_device = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def stage(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the arrays on the device, by name. They are valid until the next call."""
        if self.device.type == "cpu":
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        offsets, end = [], 0
        for array in arrays.values():
            offsets.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        assert end <= len(self._on_device), f"a step stages {end} bytes, and {len(self._on_device)} are reserved"
        host, copied = self._host[self._next], self._copied[self._next]
        self._next = 1 - self._next
        copied.synchronize()
        staged = {}
        for offset, (name, array) in zip(offsets, arrays.items(), strict=True):
            stop = offset + array.nbytes
            host[offset:stop].numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            dtype = torch.from_numpy(array[:0]).dtype
            staged[name] = self._on_device[offset:stop].view(dtype).view(array.shape)
        self._on_device[:end].copy_(host[:end], non_blocking=True)
        copied.record(torch.cuda.current_stream(self.device))
        return staged
