"""Greedy answers of a small random model in float32, which must be the same on every path."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request import RequestHandle
from llava_serving.engine.stats import Stats
from llava_serving.model.backend import CPU, TORCH, Backend, triton_backend

from .context import Context
from .poison import poisoned
from .random_model import EOS, random_llava
from .runners import make_runner, random_ids, vocabulary_of
from .sizes import Shape

REQUESTS = 24
MAX_NUM_SEQS = 8  # fewer than there are requests, so that they come and go
BLOCKS = 40
DEVIATION = 0.15  # of the weights: with less, every answer is one token over and over
Answers = list[tuple[int, ...]]


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    context.release_model()
    model = random_llava(sizes.equality_shape, sizes.device, torch.float32, DEVIATION)
    submissions = [_request(sizes.equality_shape, number) for number in range(REQUESTS)]
    paths, reference = {}, None
    for name, backend, static in _paths(sizes.device):
        began = time.perf_counter()
        answers = _answers(model, submissions, backend, static)
        reference = reference or answers
        seconds = time.perf_counter() - began
        differing = [at for at in range(REQUESTS) if answers[at] != reference[at]]
        paths[name] = {"equal": not differing, "differing": differing, "seconds": seconds}
        context.say(f"equality, {name}: {REQUESTS - len(differing)} of {REQUESTS} answers equal, {seconds:.1f} s")
    assert reference is not None
    return {
        "requests": REQUESTS, "tokens": sum(map(len, reference)), "distinct_tokens": len(set().union(*reference)),
        "reference": next(iter(paths)), "paths": paths, "holds": all(path["equal"] for path in paths.values()),
    }  # fmt: skip


def _paths(device: torch.device) -> Iterator[tuple[str, Backend, bool]]:
    """Name, backend, and whether decode steps are static and the host a step behind. The first is the reference."""
    triton = triton_backend(device)
    yield "torch eager", TORCH, False
    yield "triton eager", triton, False
    yield "triton graph", triton, True
    if device.type == "cpu":
        yield "cpu", CPU, False


def _request(shape: Shape, number: int) -> EnginePrompt:
    """Prompts of many lengths, every fourth with a picture, some with a penalty, some beginning like another."""
    ids = random_ids(20, shape.vocabulary, 1000) if number % 6 == 1 else []
    ids += random_ids(1 + number * 7 % 37, shape.vocabulary, number)
    images: tuple[PromptImage, ...] = ()
    if number % 4 == 0:
        pixels = torch.randn(3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(number))
        images = (PromptImage(1, shape.image_tokens, bytes([number]), pixels),)
        ids[1:1] = [shape.image_token_id] * shape.image_tokens
    penalty = 1.2 if number % 5 == 0 else 1.0
    return EnginePrompt(tuple(ids), images, SamplingParams(2 + number % 5, repetition_penalty=penalty, ignore_eos=True))


def _answers(
    model: LlavaForConditionalGeneration, submissions: list[EnginePrompt], backend: Backend, static: bool
) -> Answers:
    with poisoned():
        runner, scheduler = make_runner(model, backend, MAX_NUM_SEQS, 32, BLOCKS, static=static, overlap=static)
        engine = Engine(scheduler, runner, vocabulary_of(model), Stats(), len(submissions))
        generations = [RequestHandle(1) for _ in submissions]
        for submission, generation in zip(submissions, generations, strict=True):
            engine.submit([submission], generation)
        engine.start()  # with all of them there, so that every path has the same steps
        try:
            return [generation.result()[0].token_ids for generation in generations]
        finally:
            engine.stop()
