"""How many blocks of keys and values there is room for."""

import torch
from transformers import LlavaForConditionalGeneration

from ..errors import StartupError
from ..settings import Settings
from .attention import Rows, TorchAttention
from .decoder import Decoder
from .kv_cache import BLOCK_SIZE, KVCache, bytes_per_block

GIB = 1024**3
CPU_GIB = 4.0


def num_blocks(model: LlavaForConditionalGeneration, settings: Settings) -> int:
    """As many as all running sequences can fill, if memory allows. Raises StartupError below one whole context."""
    config = model.config.text_config
    whole_context = -(-config.max_position_embeddings // BLOCK_SIZE)
    block = bytes_per_block(config, model.dtype)
    room = _room(model, settings)
    blocks = int(room // block)
    if blocks < whole_context:
        raise StartupError(
            f"there is room for {max(0, blocks) * BLOCK_SIZE:,} tokens of keys and values ({room / GIB:.2f} GiB), and "
            f"one whole context has {config.max_position_embeddings:,} ({whole_context * block / GIB:.2f} GiB): raise "
            "LLAVA_KV_CACHE_GIB or LLAVA_GPU_MEMORY_UTILIZATION, or lower LLAVA_MAX_NUM_BATCHED_TOKENS"
        )
    return blocks if settings.kv_cache_gib else min(blocks, settings.max_num_seqs * whole_context)


def _room(model: LlavaForConditionalGeneration, settings: Settings) -> float:
    """Bytes."""
    if settings.kv_cache_gib is not None:
        return settings.kv_cache_gib * GIB
    if model.device.type != "cuda":
        return CPU_GIB * GIB
    _, total = torch.cuda.mem_get_info(model.device)
    return total * settings.gpu_memory_utilization - _peak(model, settings)


@torch.inference_mode()
def _peak(model: LlavaForConditionalGeneration, settings: Settings) -> int:
    """Bytes of the device in use at the height of the largest step: weights, activations, and what others hold."""
    config, device = model.config.text_config, model.device
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    cache = KVCache(config, 0, model.dtype, device)
    decoder, attention = Decoder(model.model.language_model), TorchAttention(cache)
    context = config.max_position_embeddings
    table = [cache.null_block] * -(-context // BLOCK_SIZE)
    decoding = [Rows(0, context - 1, context, table)] * settings.max_num_seqs
    chunk = min(context, settings.max_num_batched_tokens)
    for rows in (decoding, [Rows(0, context - chunk, context, table)]):
        tokens = sum(row.end - row.start for row in rows)
        hidden = torch.zeros(tokens, config.hidden_size, dtype=model.dtype, device=device)
        positions = torch.zeros(tokens, dtype=torch.long, device=device)
        hidden = decoder(hidden, positions, attention.plan(rows))
        model.lm_head(hidden[: settings.max_num_seqs]).float().softmax(-1, dtype=torch.float64)
    vision = model.config.vision_config
    images = -(-settings.max_num_batched_tokens // (vision.image_size // vision.patch_size) ** 2) + 1
    pixels = torch.zeros(images, 3, vision.image_size, vision.image_size, dtype=model.dtype, device=device)
    model.model.vision_tower(pixels, output_hidden_states=True)
    remembered = settings.image_cache_size * (vision.image_size // vision.patch_size) ** 2 * config.hidden_size
    peak: int = torch.cuda.max_memory_reserved(device) + others + remembered * model.dtype.itemsize
    torch.cuda.empty_cache()
    return peak
