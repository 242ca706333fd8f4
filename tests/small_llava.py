"""A tiny random LLaVA in memory, and requests to an engine on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.completion import Completion
from llava_serving.engine.config import EngineConfig
from llava_serving.engine.engine import Engine, TextModel
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request import RequestHandle
from llava_serving.engine.scheduler import Scheduler
from llava_serving.engine.stats import Stats
from llava_serving.model.backend import Backend
from llava_serving.model.runner_builder import Vocabulary, build_runner
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block

TEXT_IDS, IMAGE_TOKEN, EOS, IMAGE_LENGTH, CONTEXT = 200, 200, 2, 4, 256
VOCABULARY = Vocabulary(TEXT_IDS, EOS)


def small_llava(num_kv_heads: int = 2) -> LlavaForConditionalGeneration:
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


def submission(ids: list[int], picture: int | None, params: SamplingParams) -> EnginePrompt:
    """`ids` of text, then a picture of that number and a word about it."""
    if picture is None:
        return EnginePrompt(tuple(ids), (), params)
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(picture))
    image = PromptImage(len(ids), IMAGE_LENGTH, bytes([picture]), pixels)
    return EnginePrompt((*ids, *[IMAGE_TOKEN] * IMAGE_LENGTH, 5), (image,), params)


@contextmanager
def running(
    model: LlavaForConditionalGeneration, backend: Backend, num_blocks: int = 200, **limits: Any
) -> Iterator[Engine]:
    """An engine with `num_blocks` blocks of cache; nothing is lost or held twice when it ends."""
    llama, stats = model.config.text_config, Stats()
    gib = (num_blocks + 0.5) * bytes_per_block(llama, llama.num_hidden_layers, model.dtype) / 2**30
    config = EngineConfig(**{"max_num_seqs": 6, "max_num_batched_tokens": 64, "kv_cache_gib": gib} | limits)
    runner, blocks = build_runner(model, VOCABULARY, config, stats, backend)
    scheduler = Scheduler(BlockManager(blocks, BLOCK_SIZE), config.max_num_seqs, config.max_num_batched_tokens, stats)
    engine = Engine(scheduler, runner, TextModel(lambda token: b"%d " % token, EOS), stats, 200)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        scheduler.check_integrity()
        assert not list(scheduler), "every sequence has ended"


def begin(engine: Engine, *submissions: EnginePrompt, **options: Any) -> list[RequestHandle]:
    """A request for each."""
    generations = []
    for one in submissions:
        generations.append(RequestHandle([one.params.n], **options))
        engine.submit([one], generations[-1])
    return generations


def answers(engine: Engine, *submissions: EnginePrompt) -> list[list[Completion]]:
    """Of requests that are all there at once."""
    return [generation.result()[0] for generation in begin(engine, *submissions)]


class NoWaiting(TorchDispatchMode):
    """Fails on whatever makes a host wait for a device: a value read, a shape that depends on values."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAIT), func
        return func(*args, **(kwargs or {}))


def tokens(completions: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in row] for row in completions]
