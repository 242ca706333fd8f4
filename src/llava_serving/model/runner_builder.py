"""Builds the runner of a loaded model, with a KV cache that fits its devices."""

import logging
from collections.abc import Callable, Sequence

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.config import EngineConfig
from ..engine.stats import Stats
from ..engine.vocabulary import Vocabulary
from .backend import Backend, choose_backend
from .cpu_kernels.vision_tower import use_kernels
from .image_encoder import ImageEncoder
from .int8_linear import Int8Linear
from .kv_cache import BLOCK_SIZE, bytes_per_block
from .kv_cache_sizing import GIB, CudaMemory, available_bytes, blocks_that_fit, configured_bytes
from .lm_head import LMHead
from .model_runner import ModelRunner
from .packed_linear import linear_device
from .pipeline_stage import Layers, PipelineStage, device_of_layers, group_by_device
from .profile_run import profile_run
from .sampling.sampler import Sampler
from .staging_buffer import StagingBuffer

logger = logging.getLogger(__name__)


def build_runner(
    model: LlavaForConditionalGeneration, vocabulary: Vocabulary, config: EngineConfig, stats: Stats,
    backend: Backend | None = None,
) -> tuple[ModelRunner, int]:  # fmt: skip
    """Returns the runner and the number of blocks of its KV cache. Raises StartupError if the cache does not fit.

    Without `backend`, the device's best one is chosen.
    """
    groups = group_by_device(model.model.language_model)
    cache_dtype = torch.int8 if config.kv_cache_dtype == "int8" else model.dtype
    chosen = backend or _best_backend(model, groups, cache_dtype)

    def assemble(blocks: int) -> ModelRunner:
        language_model = model.model.language_model
        stages = [PipelineStage(language_model, layers, blocks, cache_dtype, chosen) for layers in groups]
        return ModelRunner(
            model, stages, ImageEncoder(model, config.image_cache_size, stats),
            LMHead(language_model.norm, model.lm_head, chosen.compute_logits),
            Sampler(vocabulary.text_size, vocabulary.eos_id, config.max_num_seqs, linear_device(model.lm_head)),
            _staging_buffer(model, config), config.max_num_seqs, config.overlap,
        )  # fmt: skip

    blocks = _num_cache_blocks(model, groups, config, cache_dtype, assemble)
    runner = assemble(blocks)
    if config.static_decode and len(groups) == 1 and chosen.paged is not None:
        runner.enable_static_decode(config.max_num_seqs)
    if chosen.prefill is not None:
        use_kernels(model.model.vision_tower, chosen.prefill)
    logger.info(
        "engine: at most %d sequences and %d tokens a step, %s tokens of KV cache in %s (%.2f GiB on %s)",
        config.max_num_seqs, config.max_num_batched_tokens, f"{blocks * BLOCK_SIZE:,}",
        str(cache_dtype).removeprefix("torch."),
        sum(stage.cache.num_bytes for stage in runner.stages) / GIB, ", ".join(str(s.device) for s in runner.stages),
    )  # fmt: skip
    return runner, blocks


def _best_backend(model: LlavaForConditionalGeneration, groups: Sequence[Layers], cache_dtype: torch.dtype) -> Backend:
    llama = model.config.text_config
    heads = llama.num_attention_heads, llama.num_key_value_heads, llama.head_dim
    has_int8_layers = any(isinstance(module, Int8Linear) for module in model.modules())
    return choose_backend(device_of_layers(groups[0]), model.dtype, cache_dtype, *heads, has_int8_layers)


def _staging_buffer(model: LlavaForConditionalGeneration, config: EngineConfig) -> StagingBuffer:
    staging = StagingBuffer(model.model.language_model.embed_tokens.weight.device)
    if staging.device.type == "cuda":
        staging.reserve(_max_staged_bytes(model, config))
    return staging


def _max_staged_bytes(model: LlavaForConditionalGeneration, config: EngineConfig) -> int:
    """Returns more bytes than the largest step stages, counting 8 bytes per element of every array."""
    context = int(model.config.text_config.max_position_embeddings)
    tokens = 8 * config.max_num_batched_tokens  # ids, batch indices, positions, slots, and some spare
    block_tables = config.max_num_seqs * (context // BLOCK_SIZE + 1)
    contexts = 2 * config.max_num_seqs * context  # slots of what prefills attend to, ids for a repetition penalty
    return 8 * (tokens + block_tables + contexts + 64 * config.max_num_seqs + 4096)


def _num_cache_blocks(
    model: LlavaForConditionalGeneration, groups: Sequence[Layers], config: EngineConfig,
    cache_dtype: torch.dtype, assemble: Callable[[int], ModelRunner],
) -> int:  # fmt: skip
    llama = model.config.text_config
    configured = configured_bytes(config, device_of_layers(groups[0]))
    if configured is not None:
        all_layers_block = bytes_per_block(llama, int(llama.num_hidden_layers), cache_dtype)
        return blocks_that_fit(configured, all_layers_block, llama, config)
    per_device = [
        (
            available_bytes(
                CudaMemory(device_of_layers(layers)),
                config.gpu_memory_utilization,
                lambda: profile_run(assemble(1), model, config),
            ),
            bytes_per_block(llama, len(layers), cache_dtype),
        )
        for layers in groups
    ]
    available, block_bytes = min(per_device, key=lambda pair: pair[0] / pair[1])
    image_cache = config.image_cache_size * model.config.image_seq_length * llama.hidden_size * model.dtype.itemsize
    return blocks_that_fit(available - image_cache, block_bytes, llama, config)
