"""How many blocks of keys and values there is room for."""

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
# For captured graphs (some 25 MiB for each of a dozen sizes), and workspaces that CUDA's libraries make later.
RESERVE_GIB = 0.5


class DeviceMemory(Protocol):
    """A device's memory as torch's caching allocator holds it; all in bytes."""

    @property
    def total(self) -> int: ...
    def free(self) -> int: ...
    def reserved(self) -> int: ...
    def peak_reserved(self) -> int: ...
    def reset_peak(self) -> None: ...
    def empty_cache(self) -> None: ...


@dataclass(frozen=True)
class CudaMemory:
    """A GPU's (torch.cuda, c10/cuda/CUDACachingAllocator.cpp)."""

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


def room_on_gpu(memory: DeviceMemory, utilization: float, largest_step: Callable[[], None]) -> float:
    """Bytes left for keys and values beside the weights, what others hold, and the height of the largest step.

    What loading has freed is given back first, so that it does not count.
    """
    memory.empty_cache()
    memory.reset_peak()
    others = memory.total - memory.free() - memory.reserved()
    largest_step()
    peak = memory.peak_reserved()
    memory.empty_cache()
    return memory.total * utilization - peak - others - RESERVE_GIB * GIB


def bytes_asked_for(config: EngineConfig, device: torch.device) -> float | None:
    """For all layers: what the operator has set, else a CPU's default; None where a GPU's memory decides."""
    if config.kv_cache_gib is not None:
        return config.kv_cache_gib * GIB
    return None if device.type == "cuda" else CPU_GIB * GIB


def num_blocks(room: float, block_bytes: int, llama: LlamaConfig, config: EngineConfig) -> int:
    """As many as all running sequences can fill, if there is `room` for them.

    Raises StartupError below one whole context.
    """
    whole_context = -(-llama.max_position_embeddings // BLOCK_SIZE)
    blocks = int(room // block_bytes)
    if blocks < whole_context:
        raise StartupError(
            f"there is room for {max(0, blocks) * BLOCK_SIZE:,} tokens of keys and values ({room / GIB:.2f} GiB), and "
            f"one whole context has {llama.max_position_embeddings:,} ({whole_context * block_bytes / GIB:.2f} GiB): "
            "raise LLAVA_KV_CACHE_GIB or LLAVA_GPU_MEMORY_UTILIZATION, or lower LLAVA_MAX_NUM_BATCHED_TOKENS"
        )
    return blocks if config.kv_cache_gib else min(blocks, config.max_num_seqs * whole_context)
