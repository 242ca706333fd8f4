"""Greedy answers of a small random model in float32, which must be equal on every path."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.engine.stats import Stats
from llava_serving.model.backend import CPU, TORCH, Backend, triton_backend

from .context import Context
from .poison import poisoned
from .random_model import random_llava
from .runners import make_runner, random_ids, vocabulary_of
from .sizes import Shape

MAX_NUM_SEQS = 8  # fewer than requests, so that requests start and end at different steps
BLOCKS = 40
WEIGHT_STD = 0.15  # with less, every answer repeats one token
Answers = list[tuple[int, ...]]
Path = tuple[str, Backend, bool]  # a name, a backend, and whether to use static decode and overlap


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    context.release_model()
    model = random_llava(sizes.equality_shape, sizes.device, torch.float32, WEIGHT_STD)
    return compare_paths(context, model, list(_paths(sizes.device)), sizes.equality_requests)


def compare_paths(
    context: Context, model: LlavaForConditionalGeneration, all_paths: list[Path], requests: int
) -> dict[str, Any]:
    """Compares the answers of paths with those of the first. The model has `equality_shape`."""
    sizes = context.sizes
    prompts = [_prompt(sizes.equality_shape, index) for index in range(requests)]
    paths, reference = {}, None
    for name, backend, static in all_paths:
        started = time.perf_counter()
        answers = _answers(model, prompts, backend, static)
        reference = reference or answers
        seconds = time.perf_counter() - started
        differing = [index for index in range(requests) if answers[index] != reference[index]]
        paths[name] = {"equal": not differing, "differing": differing, "seconds": seconds}
        context.report(f"equality, {name}: {requests - len(differing)} of {requests} answers equal, {seconds:.1f} s")
    assert reference is not None
    return {
        "requests": requests, "tokens": sum(map(len, reference)), "distinct_tokens": len(set().union(*reference)),
        "reference": next(iter(paths)), "paths": paths, "holds": all(path["equal"] for path in paths.values()),
    }  # fmt: skip


def _paths(device: torch.device) -> Iterator[Path]:
    """Yields the reference first."""
    triton = triton_backend(device)
    yield "torch eager", TORCH, False
    yield "triton eager", triton, False
    yield "triton graph", triton, True
    if device.type == "cpu":
        yield "cpu", CPU, False


def _prompt(shape: Shape, index: int) -> EnginePrompt:
    """Returns a prompt. Lengths differ, every fourth has an image, some have a penalty, and some share a prefix."""
    ids = random_ids(20, shape.vocab_size, 1000) if index % 6 == 1 else []
    ids += random_ids(1 + index * 7 % 37, shape.vocab_size, index)
    images: tuple[PromptImage, ...] = ()
    if index % 4 == 0:
        pixels = torch.randn(3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(index))
        images = (PromptImage(1, shape.image_tokens, bytes([index]), pixels),)
        ids[1:1] = [shape.image_token_id] * shape.image_tokens
    penalty = 1.2 if index % 5 == 0 else 1.0
    return EnginePrompt(tuple(ids), images, SamplingParams(2 + index % 5, repetition_penalty=penalty, ignore_eos=True))


def _answers(
    model: LlavaForConditionalGeneration, prompts: list[EnginePrompt], backend: Backend, static: bool
) -> Answers:
    with poisoned():
        runner, scheduler = make_runner(model, backend, MAX_NUM_SEQS, 32, BLOCKS, static=static, overlap=static)
        engine = Engine(scheduler, runner, vocabulary_of(model), Stats(), len(prompts))
        handles = [RequestHandle() for _ in prompts]
        for prompt, handle in zip(prompts, handles, strict=True):
            engine.submit([prompt], handle)
        engine.start()  # after all are submitted, so that every path has the same steps
        try:
            return [handle.result()[0].token_ids for handle in handles]
        finally:
            engine.stop()
