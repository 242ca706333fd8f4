"""The largest steps that an engine can run, to measure the memory that they need."""

import torch
from transformers import LlavaForConditionalGeneration

from ..engine.config import EngineConfig
from ..engine.prompt import PromptImage, SamplingParams
from ..engine.scheduler import Batch, ScheduledChunk
from ..engine.sequence import Sequence, random_numbers
from .kv_cache import BLOCK_SIZE
from .model_runner import ModelRunner


def profile_run(runner: ModelRunner, model: LlavaForConditionalGeneration, config: EngineConfig) -> None:
    """Decodes as many sequences as can run, then prefills as many tokens as fit in a step, with images.

    `runner` may have a cache of one block, which all positions share. The results are meaningless, and the memory used
    is the largest possible.
    """
    context = int(model.config.text_config.max_position_embeddings)
    budget = config.max_num_batched_tokens
    decodes = [
        ScheduledChunk(_sequence(i, context, ()), context - 1, context, True) for i in range(config.max_num_seqs)
    ]
    runner.run(Batch(decodes, []))
    images = _images(model, context)
    chunk_sizes = [min(context, budget - start) for start in range(0, budget, context)]
    prefills = [
        ScheduledChunk(_sequence(i % config.max_num_seqs, context, images), context - size, context, True)
        for i, size in enumerate(chunk_sizes)
    ]
    runner.run(Batch(prefills, []))


def _images(model: LlavaForConditionalGeneration, context: int) -> tuple[PromptImage, ...]:
    """Returns as many distinct images as fit in a context."""
    size = model.config.vision_config.image_size
    length = int(model.config.image_seq_length)
    return tuple(
        PromptImage(start, length, bytes([index]), torch.zeros(3, size, size))
        for index, start in enumerate(range(0, context - length, length))
    )


def _sequence(index: int, context: int, images: tuple[PromptImage, ...]) -> Sequence:
    """Returns a sequence of a whole context whose sampling uses every feature, with all positions in block 0."""
    params = SamplingParams(context, temperature=1.0, top_p=0.5, repetition_penalty=1.1, logprobs=5)
    seq = Sequence(index, [1] * context, images, params, random_numbers(0, 0))
    seq.block_table, seq.batch_index = [0] * -(-context // BLOCK_SIZE), index
    return seq
