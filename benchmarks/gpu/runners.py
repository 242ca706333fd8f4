"""A runner of the random model, with a scheduler for it."""

import random
from typing import Literal

import torch
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.config import EngineConfig
from llava_serving.engine.scheduler import Scheduler
from llava_serving.engine.stats import Stats
from llava_serving.engine.vocabulary import Vocabulary
from llava_serving.model.backend import Backend
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block
from llava_serving.model.model_runner import ModelRunner
from llava_serving.model.runner_builder import build_runner

from .random_model import EOS
from .sizes import GIB

ADDED_TOKENS = 3
KVCacheDtype = Literal["auto", "int8"]


def vocabulary_of(model: LlavaForConditionalGeneration) -> Vocabulary:
    """Returns a vocabulary in which every token adds the same text, because the benchmark reads only token ids."""
    return Vocabulary(model.config.text_config.vocab_size - ADDED_TOKENS, EOS, lambda _: b"x")


def make_runner(
    model: LlavaForConditionalGeneration, backend: Backend, max_num_seqs: int, max_step_tokens: int, num_blocks: int,
    static: bool = False, overlap: bool = True, kv_cache_dtype: KVCacheDtype = "auto",
) -> tuple[ModelRunner, Scheduler]:  # fmt: skip
    """Returns a runner whose KV cache has at least `num_blocks` blocks, and a scheduler for it."""
    llama = model.config.text_config
    blocks = max(num_blocks, -(-llama.max_position_embeddings // BLOCK_SIZE))
    cache_dtype = torch.int8 if kv_cache_dtype == "int8" else model.dtype
    cache_bytes = (blocks + 0.5) * bytes_per_block(llama, llama.num_hidden_layers, cache_dtype)
    config = EngineConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_step_tokens, kv_cache_gib=cache_bytes / GIB,
        static_decode=static, overlap=overlap, kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip
    stats = Stats()
    runner, actual_blocks = build_runner(model, vocabulary_of(model), config, stats, backend)
    return runner, Scheduler(BlockManager(actual_blocks, BLOCK_SIZE), max_num_seqs, max_step_tokens, stats)


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Returns random ids of text."""
    numbers = random.Random(seed)
    return [numbers.randrange(3, vocab_size - ADDED_TOKENS) for _ in range(count)]
