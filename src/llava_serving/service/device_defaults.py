"""An engine's limits: the settings, and a default that suits the device for each one that is not set."""

from dataclasses import dataclass

import torch

from ..engine.config import EngineConfig
from ..settings import MAX_DEFAULT_SEQS, MIN_DEFAULT_SEQS, Settings

LARGE_GPU_GIB = 38  # a 40 GB card, less the part that the driver reserves
HOPPER = (9, 0)


@dataclass(frozen=True)
class DeviceDefaults:
    """The number of sequences that run together, and of tokens in a step."""

    max_num_seqs: int
    max_num_batched_tokens: int


SMALL = DeviceDefaults(MIN_DEFAULT_SEQS, 512)


def device_defaults(memory_gib: float, capability: tuple[int, int]) -> DeviceDefaults:
    """Returns the defaults for a GPU. Larger steps use fast cards better, and delay running answers for longer."""
    if memory_gib < LARGE_GPU_GIB:
        return SMALL
    return DeviceDefaults(MAX_DEFAULT_SEQS, 2048 if capability >= HOPPER else 1024)


def engine_config(settings: Settings, device: torch.device) -> EngineConfig:
    """Returns the limits for a model whose first layer is on `device`."""
    defaults, on_gpu = SMALL, device.type == "cuda"
    if on_gpu:
        total_gib = torch.cuda.mem_get_info(device)[1] / 2**30
        defaults = device_defaults(total_gib, torch.cuda.get_device_capability(device))
    # Each running sequence takes a token of every step.
    tokens = settings.max_num_batched_tokens or max(defaults.max_num_batched_tokens, settings.max_num_seqs or 1)
    return EngineConfig(
        max_num_seqs=settings.max_num_seqs or min(defaults.max_num_seqs, tokens),
        max_num_batched_tokens=tokens,
        max_queued_seqs=settings.max_queued_seqs,
        kv_cache_gib=settings.kv_cache_gib,
        kv_cache_dtype=settings.kv_cache_dtype,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        prefix_caching=settings.prefix_caching,
        image_cache_size=settings.image_cache_size,
        static_decode=on_gpu and not settings.enforce_eager,
        overlap=on_gpu,
    )
