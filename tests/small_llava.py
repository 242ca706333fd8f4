"""A tiny random LLaVA in memory, and an engine that runs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.completion import Completion
from llava_serving.engine.config import EngineConfig
from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.engine.scheduler import Scheduler
from llava_serving.engine.stats import Stats
from llava_serving.engine.vocabulary import Vocabulary
from llava_serving.model.backend import Backend
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block
from llava_serving.model.runner_builder import build_runner

TEXT_IDS, IMAGE_TOKEN, EOS, IMAGE_LENGTH, CONTEXT = 200, 200, 2, 4, 256
VOCABULARY = Vocabulary(TEXT_IDS, EOS, lambda token: b"%d " % token)


def small_llava(num_kv_heads: int = 2) -> LlavaForConditionalGeneration:
    """Returns a model with two query heads. With one KV head, attention is grouped-query attention."""
    text = LlamaConfig(
        vocab_size=TEXT_IDS + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=num_kv_heads, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=1,
        eos_token_id=EOS, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=32,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, image_seq_length=IMAGE_LENGTH,
        projector_hidden_act="linear", vision_feature_layer=-2, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    return model.eval().requires_grad_(False)


def engine_prompt(ids: list[int], image_seed: int | None, params: SamplingParams) -> EnginePrompt:
    """Returns a prompt of the text `ids`. With `image_seed`, a random image and one token of text follow."""
    if image_seed is None:
        return EnginePrompt(tuple(ids), (), params)
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(image_seed))
    image = PromptImage(len(ids), IMAGE_LENGTH, bytes([image_seed]), pixels)
    return EnginePrompt((*ids, *[IMAGE_TOKEN] * IMAGE_LENGTH, 5), (image,), params)


@contextmanager
def running(
    model: LlavaForConditionalGeneration, backend: Backend, num_blocks: int = 200, **limits: Any
) -> Iterator[Engine]:
    """Runs an engine whose KV cache has `num_blocks` blocks.

    At the end it checks that no block is lost or held twice, and that every sequence has ended.
    """
    llama, stats = model.config.text_config, Stats()
    cache_dtype = torch.int8 if limits.get("kv_cache_dtype") == "int8" else model.dtype
    gib = (num_blocks + 0.5) * bytes_per_block(llama, llama.num_hidden_layers, cache_dtype) / 2**30
    config = EngineConfig(**{"max_num_seqs": 6, "max_num_batched_tokens": 64, "kv_cache_gib": gib} | limits)
    runner, blocks = build_runner(model, VOCABULARY, config, stats, backend)
    scheduler = Scheduler(BlockManager(blocks, BLOCK_SIZE), config.max_num_seqs, config.max_num_batched_tokens, stats)
    engine = Engine(scheduler, runner, VOCABULARY, stats, 200)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        scheduler.check_integrity()
        assert not list(scheduler), "every sequence has ended"


def begin(engine: Engine, *prompts: EnginePrompt, **options: Any) -> list[RequestHandle]:
    """Submits one request per prompt."""
    handles = []
    for prompt in prompts:
        handles.append(RequestHandle(**options))
        engine.submit([prompt], handles[-1])
    return handles


def answers(engine: Engine, *prompts: EnginePrompt) -> list[list[Completion]]:
    """Submits one request per prompt, and returns the completions of each after all are submitted."""
    return [handle.result() for handle in begin(engine, *prompts)]


def tokens(completions: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    """Returns the token ids of the completions of each request."""
    return [[completion.token_ids for completion in request] for request in completions]


class NoWaiting(TorchDispatchMode):
    """Fails on every operator that makes the host wait for a device, because it reads a value."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAITING), func
        return func(*args, **(kwargs or {}))
