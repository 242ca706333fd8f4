"""How many blocks the KV cache has: from a setting, or from the memory that a profile run leaves on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import LlamaConfig

from ..engine.config import EngineConfig
from ..errors import StartupError
from .kv_cache import BLOCK_SIZE

GIB = 1024**3
CPU_GIB = 4.0
# For captured graphs (about 25 MiB for each of a dozen sizes), and for workspaces that CUDA's libraries make later.
RESERVE_GIB = 0.5


class DeviceMemory(Protocol):
    """A device's memory as torch's caching allocator reports it, in bytes."""

    @property
    def total(self) -> int: ...
    def free(self) -> int: ...
    def reserved(self) -> int: ...
    def peak_reserved(self) -> int: ...
    def reset_peak(self) -> None: ...
    def empty_cache(self) -> None: ...


@dataclass(frozen=True)
class CudaMemory:
    """The memory of a GPU (torch.cuda, c10/cuda/CUDACachingAllocator.cpp)."""

    device: torch.device

    @property
    def total(self) -> int:
        return torch.cuda.mem_get_info(self.device)[1]

    def free(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def peak_reserved(self) -> int:
        return torch.cuda.max_memory_reserved(self.device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()


def available_bytes(memory: DeviceMemory, utilization: float, profile_run: Callable[[], None]) -> float:
    """Returns the bytes that a GPU has for the KV cache.

    They are `utilization` of its total memory, less the peak of `profile_run` (weights included), less what other
    processes use, less a reserve. Memory that was freed after loading is returned to the GPU first, so that the peak
    does not include it.
    """
    memory.empty_cache()
    memory.reset_peak()
    others = memory.total - memory.free() - memory.reserved()
    profile_run()
    peak = memory.peak_reserved()
    memory.empty_cache()
    return memory.total * utilization - peak - others - RESERVE_GIB * GIB


def configured_bytes(config: EngineConfig, device: torch.device) -> float | None:
    """Returns the bytes of the cache of all layers: as set, or a CPU's default, or None to measure a GPU's memory."""
    if config.kv_cache_gib is not None:
        return config.kv_cache_gib * GIB
    return None if device.type == "cuda" else CPU_GIB * GIB


def blocks_that_fit(cache_bytes: float, block_bytes: int, llama: LlamaConfig, config: EngineConfig) -> int:
    """Returns how many blocks fit in `cache_bytes`.

    Unless the size of the cache is set, there are no more blocks than all running sequences can fill.
    Raises StartupError if one whole context does not fit.
    """
    context_blocks = -(-llama.max_position_embeddings // BLOCK_SIZE)
    blocks = int(cache_bytes // block_bytes)
    if blocks < context_blocks:
        raise StartupError(
            f"there is room for {max(0, blocks) * BLOCK_SIZE:,} tokens of keys and values ({cache_bytes / GIB:.2f} "
            f"GiB), and one whole context has {llama.max_position_embeddings:,} "
            f"({context_blocks * block_bytes / GIB:.2f} GiB): "
            "raise LLAVA_KV_CACHE_GIB or LLAVA_GPU_MEMORY_UTILIZATION, or lower LLAVA_MAX_NUM_BATCHED_TOKENS"
        )
    return blocks if config.kv_cache_gib else min(blocks, config.max_num_seqs * context_blocks)
