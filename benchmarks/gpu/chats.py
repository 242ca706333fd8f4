"""Chats with a picture each: all at once through the engine, and one after the other through `generate`."""

import statistics
import time
from typing import Any

import torch

from llava_serving.engine.completion import Completion
from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request import RequestHandle
from llava_serving.engine.stats import Stats
from llava_serving.model.backend import triton_backend
from llava_serving.model.kv_cache import BLOCK_SIZE

from .context import Context
from .random_model import EOS
from .runners import make_runner, random_ids, vocabulary_of
from .sizes import Sizes

WARM_UP = 2  # chats, of pictures that are not asked about again
WARM_UP_ANSWER = 3


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    chats = [chat(sizes, number) for number in range(sizes.chats)]
    together, answers = _together(context, chats)
    context.tidy()
    alone, found = _one_by_one(context, chats[: sizes.chats_one_by_one])
    ratio = together["tokens_per_second"] / alone["tokens_per_second"]
    context.say(f"chats: {ratio:.1f} times generate's tokens a second")
    agree = [_agreeing(mine, theirs) for mine, theirs in zip(answers, found, strict=False)]
    return {
        "prompt_tokens": len(chats[0].token_ids), "engine": together, "generate": alone, "ratio": ratio,
        "leading_tokens_as_generate": agree,
        "holds": all(len(answer) == sizes.chat_answer for answer in answers),
    }  # fmt: skip


def chat(sizes: Sizes, number: int, max_new_tokens: int | None = None) -> EnginePrompt:
    """Half of the prompt, the picture, the other half."""
    shape, before = sizes.shape, sizes.chat_prompt // 2
    ids = random_ids(sizes.chat_prompt, shape.vocabulary, number)
    ids[before:before] = [shape.image_token_id] * shape.image_tokens
    pixels = torch.randn(3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(number))
    image = PromptImage(before, shape.image_tokens, f"picture {number}".encode(), pixels)
    return EnginePrompt(tuple(ids), (image,), SamplingParams(max_new_tokens or sizes.chat_answer, ignore_eos=True))


def _together(context: Context, chats: list[EnginePrompt]) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    sizes = context.sizes
    longest = len(chats[0].token_ids) + sizes.chat_answer
    runner, scheduler = make_runner(
        context.model, triton_backend(sizes.device), max(sizes.batches), sizes.max_step_tokens,
        (max(sizes.batches) + 1) * -(-longest // BLOCK_SIZE), static=True,
    )  # fmt: skip
    engine = Engine(scheduler, runner, vocabulary_of(context.model), Stats(), 2 * len(chats), prefix_caching=False)
    engine.start()
    try:
        answered(engine, [chat(sizes, len(chats) + number, WARM_UP_ANSWER) for number in range(WARM_UP)])
        began = time.perf_counter()
        completions = answered(engine, chats)
        seconds = time.perf_counter() - began
    finally:
        engine.stop()
    tokens = sum(completion.num_tokens for completion in completions)
    context.say(f"{len(chats)} chats at once: {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")
    told = {
        "chats": len(chats), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
        "mean_ttft_seconds": statistics.mean(completion.ttft_seconds or 0.0 for completion in completions),
        "max_ttft_seconds": max(completion.ttft_seconds or 0.0 for completion in completions),
        "mean_tpot_seconds": statistics.mean(completion.tpot_seconds or 0.0 for completion in completions),
    }  # fmt: skip
    return told, [completion.token_ids for completion in completions]


def answered(engine: Engine, submissions: list[EnginePrompt]) -> list[Completion]:
    """Each as a request of its own, all submitted before the first is waited for."""
    generations = [RequestHandle(1) for _ in submissions]
    for submission, generation in zip(submissions, generations, strict=True):
        engine.submit([submission], generation)
    return [generation.result()[0] for generation in generations]


def _one_by_one(context: Context, chats: list[EnginePrompt]) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    _generated(context, chats[0], WARM_UP_ANSWER)
    began = time.perf_counter()
    answers = [_generated(context, one, one.params.max_new_tokens) for one in chats]
    seconds = time.perf_counter() - began
    tokens = sum(len(answer) for answer in answers)
    context.say(f"{len(chats)} chats by generate: {seconds:.2f} s, {tokens / seconds:.1f} tokens/s")
    return {
        "chats": len(chats), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
    }, answers  # fmt: skip


@torch.inference_mode()
def _generated(context: Context, submission: EnginePrompt, count: int) -> tuple[int, ...]:
    """transformers' own, with its own cache; the tokens come back to the host as a caller would have them."""
    device, dtype = context.sizes.device, context.sizes.dtype
    ids = torch.tensor([submission.token_ids], device=device)
    output = context.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids),
        pixel_values=submission.images[0].pixels[None].to(device, dtype), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return tuple(output[0, ids.shape[1] :].tolist())


def _agreeing(mine: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    """How many leading tokens are the same: in half precision greedy answers part at a near tie."""
    pairs = list(zip(mine, theirs, strict=False))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
