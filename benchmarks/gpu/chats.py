"""Chats about one image each: all at once through the engine, and one after the other through `generate`."""

import statistics
import time
from typing import Any

import torch

from llava_serving.engine.completion import Completion
from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.engine.stats import Stats
from llava_serving.model.backend import triton_backend
from llava_serving.model.kv_cache import BLOCK_SIZE

from .context import Context
from .runners import make_runner, random_ids, vocabulary_of
from .sizes import Sizes

WARM_UP = 2  # chats, about other images than the measured ones
WARM_UP_ANSWER = 3
Answers = list[tuple[int, ...]]


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    chats = [chat(sizes, index) for index in range(sizes.chats)]
    engine, engine_answers = _with_engine(context, chats)
    context.free_memory()
    generate, generate_answers = _with_generate(context, chats[: sizes.chats_one_by_one])
    ratio = engine["tokens_per_second"] / generate["tokens_per_second"]
    context.report(f"chats: {ratio:.1f} times the tokens per second of generate")
    pairs = zip(engine_answers, generate_answers, strict=False)
    return {
        "prompt_tokens": len(chats[0].token_ids), "engine": engine, "generate": generate, "ratio": ratio,
        "leading_tokens_as_generate": [_common_prefix_length(*pair) for pair in pairs],
        "holds": all(len(answer) == sizes.chat_answer for answer in engine_answers),
    }  # fmt: skip


def chat(sizes: Sizes, seed: int, max_new_tokens: int | None = None) -> EnginePrompt:
    """Returns a prompt of random text with a random image in the middle."""
    shape, image_start = sizes.shape, sizes.chat_prompt // 2
    ids = random_ids(sizes.chat_prompt, shape.vocab_size, seed)
    ids[image_start:image_start] = [shape.image_token_id] * shape.image_tokens
    pixels = torch.randn(3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(seed))
    image = PromptImage(image_start, shape.image_tokens, f"image {seed}".encode(), pixels)
    return EnginePrompt(tuple(ids), (image,), SamplingParams(max_new_tokens or sizes.chat_answer, ignore_eos=True))


def _with_engine(context: Context, chats: list[EnginePrompt]) -> tuple[dict[str, Any], Answers]:
    sizes = context.sizes
    longest = len(chats[0].token_ids) + sizes.chat_answer
    runner, scheduler = make_runner(
        context.model, triton_backend(sizes.device), max(sizes.batches), sizes.max_step_tokens,
        (max(sizes.batches) + 1) * -(-longest // BLOCK_SIZE), static=True,
    )  # fmt: skip
    engine = Engine(scheduler, runner, vocabulary_of(context.model), Stats(), 2 * len(chats), prefix_caching=False)
    engine.start()
    try:
        complete(engine, [chat(sizes, len(chats) + index, WARM_UP_ANSWER) for index in range(WARM_UP)])
        started = time.perf_counter()
        completions = complete(engine, chats)
        seconds = time.perf_counter() - started
    finally:
        engine.stop()
    tokens = sum(completion.num_tokens for completion in completions)
    context.report(f"{len(chats)} chats at once: {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")
    result = {
        "chats": len(chats), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
        "mean_ttft_seconds": statistics.mean(completion.ttft_seconds or 0.0 for completion in completions),
        "max_ttft_seconds": max(completion.ttft_seconds or 0.0 for completion in completions),
        "mean_tpot_seconds": statistics.mean(completion.tpot_seconds or 0.0 for completion in completions),
    }  # fmt: skip
    return result, [completion.token_ids for completion in completions]


def complete(engine: Engine, prompts: list[EnginePrompt]) -> list[Completion]:
    """Submits one request per prompt, and returns their completions after all are submitted."""
    handles = [RequestHandle() for _ in prompts]
    for prompt, handle in zip(prompts, handles, strict=True):
        engine.submit([prompt], handle)
    return [handle.result()[0] for handle in handles]


def _with_generate(context: Context, chats: list[EnginePrompt]) -> tuple[dict[str, Any], Answers]:
    _generate(context, chats[0], WARM_UP_ANSWER)
    started = time.perf_counter()
    answers = [_generate(context, prompt, prompt.params.max_new_tokens) for prompt in chats]
    seconds = time.perf_counter() - started
    tokens = sum(len(answer) for answer in answers)
    context.report(f"{len(chats)} chats by generate: {seconds:.2f} s, {tokens / seconds:.1f} tokens/s")
    return {
        "chats": len(chats), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
    }, answers  # fmt: skip


@torch.inference_mode()
def _generate(context: Context, prompt: EnginePrompt, count: int) -> tuple[int, ...]:
    """Returns `count` tokens of transformers' `generate`, with its own cache, after their copy to the host."""
    device, dtype = context.sizes.device, context.sizes.dtype
    ids = torch.tensor([prompt.token_ids], device=device)
    output = context.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids),
        pixel_values=prompt.images[0].pixels[None].to(device, dtype), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return tuple(output[0, ids.shape[1] :].tolist())


def _common_prefix_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Returns how many leading tokens are equal. In half precision, greedy answers diverge at a near tie."""
    pairs = list(zip(first, second, strict=False))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))
