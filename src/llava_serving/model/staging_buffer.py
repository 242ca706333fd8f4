"""Everything the host tells the device about a step, in one copy."""

from collections.abc import Mapping

import numpy as np
import torch

ALIGNMENT = 16  # bytes: what Triton's vector loads and every dtype of torch want


class Staging:
    """Lays arrays side by side in pinned memory and copies them to the device at once.

    The same arrays in the same order lie at the same device addresses in every step, so that a captured graph finds
    them. Two host buffers take turns: the copy of one step may still wait for the device while the next is written. A
    buffer is written again once its own copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self._turn = 0

    def reserve(self, num_bytes: int) -> None:
        """Makes room; the addresses of what was staged before are no longer valid."""
        self._host = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
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
        host, copied = self._host[self._turn], self._copied[self._turn]
        self._turn = 1 - self._turn
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
