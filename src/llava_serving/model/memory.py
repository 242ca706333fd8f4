"""How many blocks of keys and values there is room for."""

from collections.abc import Sequence

import torch
from transformers import LlavaForConditionalGeneration

from ..errors import StartupError
from ..settings import Settings
from .attention import Rows
from .kv_cache import BLOCK_SIZE, bytes_per_block
from .stage import Layers, Stage, device_of

GIB = 1024**3
CPU_GIB = 4.0


def num_blocks(model: LlavaForConditionalGeneration, groups: Sequence[Layers], settings: Settings) -> int:
    """As many as all running sequences can fill, if the memory of every stage allows.

    `groups` are the layers of each. Raises StartupError below one whole context.
    """
    config = model.config.text_config
    whole_context = -(-config.max_position_embeddings // BLOCK_SIZE)
    rooms = [(_room(model, layers, settings), bytes_per_block(config, len(layers), model.dtype)) for layers in groups]
    room, block = min(rooms, key=lambda pair: pair[0] / pair[1])
    blocks = int(room // block)
    if blocks < whole_context:
        raise StartupError(
            f"there is room for {max(0, blocks) * BLOCK_SIZE:,} tokens of keys and values ({room / GIB:.2f} GiB), and "
            f"one whole context has {config.max_position_embeddings:,} ({whole_context * block / GIB:.2f} GiB): raise "
            "LLAVA_KV_CACHE_GIB or LLAVA_GPU_MEMORY_UTILIZATION, or lower LLAVA_MAX_NUM_BATCHED_TOKENS"
        )
    return blocks if settings.kv_cache_gib else min(blocks, settings.max_num_seqs * whole_context)


def _room(model: LlavaForConditionalGeneration, layers: Layers, settings: Settings) -> float:
    """Bytes on the layers' device."""
    device, all_layers = device_of(layers), int(model.config.text_config.num_hidden_layers)
    share = len(layers) / all_layers
    if settings.kv_cache_gib is not None:
        return settings.kv_cache_gib * GIB * share
    if device.type != "cuda":
        return CPU_GIB * GIB * share
    _, total = torch.cuda.mem_get_info(device)
    return total * settings.gpu_memory_utilization - _peak(model, layers, settings)


@torch.inference_mode()
def _peak(model: LlavaForConditionalGeneration, layers: Layers, settings: Settings) -> int:
    """Bytes of the layers' device in use at the height of the largest step: weights, activations, what others hold."""
    config, device = model.config.text_config, device_of(layers)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    stage = Stage(model.model.language_model, layers, 0)
    context = config.max_position_embeddings
    table = [stage.cache.null_block] * -(-context // BLOCK_SIZE)
    decoding = [Rows(0, context - 1, context, table)] * settings.max_num_seqs
    chunk = min(context, settings.max_num_batched_tokens)
    for rows in (decoding, [Rows(0, context - chunk, context, table)]):
        tokens = sum(row.end - row.start for row in rows)
        hidden = torch.zeros(tokens, config.hidden_size, dtype=model.dtype, device=device)
        hidden = stage(hidden, torch.zeros(tokens, dtype=torch.long), rows)
        if model.lm_head.weight.device == device:
            model.lm_head(hidden[: settings.max_num_seqs]).float().softmax(-1, dtype=torch.float64)
    remembered = 0
    if model.model.vision_tower.device == device:
        remembered = _see(model, settings)
    peak: int = torch.cuda.max_memory_reserved(device) + others + remembered
    torch.cuda.empty_cache()
    return peak


def _see(model: LlavaForConditionalGeneration, settings: Settings) -> int:
    """Encodes as many images as a step can begin; bytes of the features that are remembered."""
    vision, tower = model.config.vision_config, model.model.vision_tower
    patches = (vision.image_size // vision.patch_size) ** 2
    images = -(-settings.max_num_batched_tokens // patches) + 1
    size = (images, 3, vision.image_size, vision.image_size)
    tower(torch.zeros(size, dtype=model.dtype, device=tower.device), output_hidden_states=True)
    remembered: int = settings.image_cache_size * patches * model.config.text_config.hidden_size * model.dtype.itemsize
    return remembered
