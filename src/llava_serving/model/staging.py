"""Everything the host tells the device about a step, in one copy."""

from collections.abc import Mapping

import numpy as np
import torch

ALIGNMENT = 16  # bytes: what Triton's vector loads and every dtype of torch want


class Staging:
    """Lays arrays side by side in pinned memory and copies them to the device at once.

    The same arrays in the same order lie at the same device addresses in every step, so that a captured graph finds
    them. Two host buffers take turns: the copy of one step may still wait for the device while the next is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host: list[torch.Tensor] = []
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self._turn = 0

    def reserve(self, num_bytes: int) -> None:
        """Makes room; the addresses of what was staged before are no longer valid."""
        pinned = self.device.type == "cuda"
        self._host = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._on_device = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def put(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The arrays on the device, by name. They are valid until the next call."""
        if self.device.type == "cpu":
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        offsets, end = [], 0
        for array in arrays.values():
            offsets.append(end)
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        assert end <= len(self._on_device), f"a step stages {end} bytes, and {len(self._on_device)} are reserved"
        host, self._turn = self._host[self._turn], 1 - self._turn
        staged = {}
        for offset, (name, array) in zip(offsets, arrays.items(), strict=True):
            stop = offset + array.nbytes
            host[offset:stop].numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            dtype = torch.from_numpy(array[:0]).dtype
            staged[name] = self._on_device[offset:stop].view(dtype).view(array.shape)
        self._on_device[:end].copy_(host[:end], non_blocking=True)
        return staged
