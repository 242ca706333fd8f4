"""A runner for a loaded model, sized to its devices."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.config import EngineConfig
from ..engine.prompt import PromptImage, SamplingParams
from ..engine.scheduler import Batch, Scheduled
from ..engine.sequence import Sequence as Seq
from ..engine.sequence import random_numbers
from ..engine.stats import Stats
from . import backend as backends
from .backend import Backend
from .kv_cache import BLOCK_SIZE, bytes_per_block
from .kv_cache_sizing import GIB, CudaMemory, bytes_asked_for, num_blocks, room_on_gpu
from .lm_head import LMHead
from .model_runner import ModelRunner
from .sampler import Sampler
from .pipeline_stage import Layers, Stage, group_by_device, device_of
from .staging_buffer import Staging
from .image_encoder import ImageEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """Ids from `text_size` on are added tokens, which are never sampled."""

    text_size: int
    eos_id: int


def build_runner(
    model: LlavaForConditionalGeneration, vocabulary: Vocabulary, config: EngineConfig, stats: Stats,
    backend: Backend | None = None,
) -> tuple[ModelRunner, int]:  # fmt: skip
    """The runner, and how many blocks its KV cache has. Raises StartupError where there is no room.

    `backend` is by default what the device is best at.
    """
    groups = group_by_device(model.model.language_model)
    backend = backend or _best_backend(model, groups)
    assemble = partial(_assemble, model, groups, vocabulary, config, stats, backend)
    blocks = _num_blocks(model, groups, config, assemble)
    runner, stages = assemble(blocks)
    if config.static_decode and len(stages) == 1 and backend.paged is not None:
        runner.make_static(config.max_num_seqs)
    logger.info(
        "engine: at most %d sequences and %d tokens a step, %s tokens of KV cache (%.2f GiB on %s)",
        config.max_num_seqs, config.max_num_batched_tokens, f"{blocks * BLOCK_SIZE:,}",
        sum(stage.cache.num_bytes for stage in stages) / GIB, ", ".join(str(stage.device) for stage in stages),
    )  # fmt: skip
    return runner, blocks


def _best_backend(model: LlavaForConditionalGeneration, groups: Sequence[Layers]) -> Backend:
    llama = model.config.text_config
    heads = llama.num_attention_heads, llama.num_key_value_heads, llama.head_dim
    return backends.choose(device_of(groups[0]), model.dtype, *heads)


def _assemble(
    model: LlavaForConditionalGeneration, groups: Sequence[Layers], vocabulary: Vocabulary, config: EngineConfig,
    stats: Stats, backend: Backend, blocks: int,
) -> tuple[ModelRunner, list[Stage]]:  # fmt: skip
    language_model = model.model.language_model
    stages = [Stage(language_model, layers, blocks, backend) for layers in groups]
    head = LMHead(language_model.norm, model.lm_head, backend.project)
    staging = Staging(language_model.embed_tokens.weight.device)
    if staging.device.type == "cuda":
        staging.reserve(_staged_bytes(model, config))
    runner = ModelRunner(
        model, stages, ImageEncoder(model, config.image_cache_size, stats), head,
        Sampler(vocabulary.text_size, vocabulary.eos_id, config.max_num_seqs, model.lm_head.weight.device),
        staging, config.max_num_seqs, config.overlap,
    )  # fmt: skip
    return runner, stages


def _staged_bytes(model: LlavaForConditionalGeneration, config: EngineConfig) -> int:
    """More than the largest step stages: every array of 8 bytes an element."""
    context = int(model.config.text_config.max_position_embeddings)
    tokens = 8 * config.max_num_batched_tokens  # ids, rows, positions, slots and room to spare
    tables = config.max_num_seqs * (context // BLOCK_SIZE + 1)
    contexts = 2 * config.max_num_seqs * context  # slots of what chunks attend to, ids for a repetition penalty
    return 8 * (tokens + tables + contexts + 64 * config.max_num_seqs + 4096)


def _num_blocks(
    model: LlavaForConditionalGeneration, groups: Sequence[Layers], config: EngineConfig,
    assemble: "partial[tuple[ModelRunner, list[Stage]]]",
) -> int:  # fmt: skip
    llama, device = model.config.text_config, device_of(groups[0])
    all_layers = int(llama.num_hidden_layers)
    asked = bytes_asked_for(config, device)
    if asked is not None:
        return num_blocks(asked, bytes_per_block(llama, all_layers, model.dtype), llama, config)
    steps = partial(largest_steps, model, config, assemble)
    rooms = [
        (
            room_on_gpu(CudaMemory(device_of(layers)), config.gpu_memory_utilization, steps),
            bytes_per_block(llama, len(layers), model.dtype),
        )
        for layers in groups
    ]
    room, block = min(rooms, key=lambda pair: pair[0] / pair[1])
    remembered = config.image_cache_size * model.config.image_seq_length * llama.hidden_size * model.dtype.itemsize
    return num_blocks(room - remembered, block, llama, config)


def largest_steps(
    model: LlavaForConditionalGeneration, config: EngineConfig, assemble: "partial[tuple[ModelRunner, list[Stage]]]"
) -> None:
    """A step that decodes as many sequences as can run, and one that prefills as many tokens as fit, with images.

    They run in a cache of one block, which all positions share: what is computed is nonsense, and as large as it gets.
    """
    runner, _ = assemble(1)
    context = model.config.text_config.max_position_embeddings
    tokens = config.max_num_batched_tokens
    size = model.config.vision_config.image_size
    patches = int(model.config.image_seq_length)
    images = tuple(
        PromptImage(start, patches, bytes([number]), torch.zeros(3, size, size))
        for number, start in enumerate(range(0, context - patches, patches))
    )
    params = SamplingParams(context, temperature=1.0, top_p=0.5, repetition_penalty=1.1, logprobs=5)
    table = [0] * (-(-context // BLOCK_SIZE))

    def sequence(number: int, its_images: tuple[PromptImage, ...]) -> Seq:
        seq = Seq(number, [1] * context, its_images, params, random_numbers(0, 0))
        seq.block_table, seq.batch_index = table, number
        return seq

    decoding = [Scheduled(sequence(n, ()), context - 1, context, True) for n in range(config.max_num_seqs)]
    chunks = [min(context, tokens - start) for start in range(0, tokens, context)]
    prefilling = [
        Scheduled(sequence(n % config.max_num_seqs, images), context - chunk, context, True)
        for n, chunk in enumerate(chunks)
    ]
    for entries in (decoding, prefilling):
        runner.run(Batch(entries, []))
