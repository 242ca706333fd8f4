"""The size of an engine: the settings, completed with defaults for the device."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EngineConfig:
    """Every limit of one engine.

    At most `max_num_seqs` sequences run in a step of at most `max_num_batched_tokens` tokens. With `kv_cache_gib` None
    the KV cache takes the memory that the device has left. `kv_cache_dtype` is that of the model with `auto`.
    `static_decode` pads decode steps to a few batch sizes, which CUDA captures as graphs. `overlap` lets the host
    prepare a step while the device computes the one before.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    max_queued_seqs: int = 64
    kv_cache_gib: float | None = None
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    gpu_memory_utilization: float = 0.9
    prefix_caching: bool = True
    image_cache_size: int = 64
    static_decode: bool = False
    overlap: bool = False

    @property
    def max_live_seqs(self) -> int:
        """Returns how many sequences run and wait at the same time."""
        return self.max_num_seqs + self.max_queued_seqs
