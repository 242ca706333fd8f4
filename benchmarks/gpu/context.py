"""What all phases share: the sizes, the model, and what the card's memory could give."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from .random_model import random_llava
from .sizes import GIB, Sizes

# Of the data sheets, in bytes a second and FLOP a second (dense, half precision).
PUBLISHED_BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H200": 4.8e12}
PUBLISHED_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


class Context:
    """`read_bandwidth` is what the bandwidth phase of this run measured, None before it."""

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

    def say(self, line: str) -> None:
        print(f"[{self.elapsed:6.1f} s] {line}", flush=True)

    @property
    def model(self) -> LlavaForConditionalGeneration:
        """The one that is measured, made when first asked for."""
        if self._model is None:
            self._model = random_llava(self.sizes.shape, self.sizes.device, self.sizes.dtype)
            self.synchronize()
            gib = sum(parameter.nbytes for parameter in self._model.parameters()) / GIB
            self.say(f"random model of {gib:.2f} GiB")
        return self._model

    def release_model(self) -> None:
        self._model = None
        self.tidy()

    def tidy(self) -> None:
        """Gives back what nobody holds any more."""
        gc.collect()
        if self.sizes.device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.sizes.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call, device included."""
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - began

    def rate(self, num_bytes: float, seconds: float) -> dict[str, Any]:
        """Bytes a second, and their share of what was measured and of what is published."""
        rate, published = num_bytes / seconds, PUBLISHED_BANDWIDTH.get(self.device_name)
        return {
            "tb_per_second": rate / 1e12,
            "share_of_read": rate / self.read_bandwidth if self.read_bandwidth else None,
            "share_of_published": rate / published if published else None,
        }
