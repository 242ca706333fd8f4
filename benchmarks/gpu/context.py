"""What all phases share: the sizes, the model, and the measured and published limits of the device."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from .random_model import random_llava
from .sizes import GIB, Sizes

# From the data sheets, in bytes per second and FLOP per second (dense, half precision).
PUBLISHED_BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H200": 4.8e12}
PUBLISHED_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


class Context:
    """`read_bandwidth` is the result of this run's bandwidth phase, or None before it."""

    def __init__(self, sizes: Sizes, started: float) -> None:
        self.sizes = sizes
        self.device_name = torch.cuda.get_device_name() if sizes.device.type == "cuda" else "CPU"
        self.read_bandwidth: float | None = None
        self._started = started
        self._model: LlavaForConditionalGeneration | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the command started."""
        return time.monotonic() - self._started

    def report(self, line: str) -> None:
        """Prints a line with the elapsed time."""
        print(f"[{self.elapsed:6.1f} s] {line}", flush=True)

    @property
    def model(self) -> LlavaForConditionalGeneration:
        """The measured model. The first use makes it."""
        if self._model is None:
            self._model = random_llava(self.sizes.shape, self.sizes.device, self.sizes.dtype)
            self.synchronize()
            gib = sum(parameter.nbytes for parameter in self._model.parameters()) / GIB
            self.report(f"random model of {gib:.2f} GiB")
        return self._model

    def release_model(self) -> None:
        self._model = None
        self.free_memory()

    def free_memory(self) -> None:
        """Returns unused memory to the device."""
        gc.collect()
        if self.sizes.device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.sizes.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Returns the time of one call, including the device's."""
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started

    def rate(self, num_bytes: float, seconds: float) -> dict[str, Any]:
        """Returns bytes per second, and their share of the measured and of the published bandwidth."""
        rate, published = num_bytes / seconds, PUBLISHED_BANDWIDTH.get(self.device_name)
        return {
            "tb_per_second": rate / 1e12,
            "share_of_read": rate / self.read_bandwidth if self.read_bandwidth else None,
            "share_of_published": rate / published if published else None,
        }
