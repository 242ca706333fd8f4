"""Steps that prefill one prompt, and images through the vision tower."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from llava_serving.engine.stats import Stats
from llava_serving.model.backend import triton_backend
from llava_serving.model.image_encoder import ImageEncoder
from llava_serving.model.kv_cache import BLOCK_SIZE

from .context import PUBLISHED_FLOPS, Context
from .runners import make_runner, random_ids
from .sizes import Shape
from .steps import Steps

ROUNDS = 5


def measure(context: Context) -> dict[str, Any]:
    images = [_encode_images(context, count) for count in context.sizes.images]
    return {"prompts": measure_prompts(context, context.sizes.prefills), "images": images, "holds": True}


def measure_prompts(context: Context, prefills: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measures a step for a prompt of each of these lengths."""
    longest, backend = max(prefills), triton_backend(context.sizes.device)
    steps = Steps(*make_runner(context.model, backend, 1, longest, longest // BLOCK_SIZE + 1))
    return [_prefill(context, steps, tokens) for tokens in prefills]


def _prefill(context: Context, steps: Steps, tokens: int) -> dict[str, Any]:
    shape = context.sizes.shape

    def run(seed: int) -> None:
        steps.add(random_ids(tokens, shape.vocab_size, seed), 1)
        steps.step()
        steps.collect()

    seconds = _median_seconds(context, run, steps.clear)
    flops = floating_point_operations(shape, tokens)
    published = PUBLISHED_FLOPS.get(context.device_name)
    context.report(f"prefill of {tokens} tokens: {seconds * 1e3:.1f} ms, {flops / seconds / 1e12:.0f} TFLOP/s")
    return {
        "tokens": tokens, "milliseconds": seconds * 1e3, "tokens_per_second": tokens / seconds,
        "tflop_per_second": flops / seconds / 1e12,
        "share_of_published": flops / seconds / published if published else None,
    }  # fmt: skip


def floating_point_operations(shape: Shape, tokens: int) -> float:
    """Counts two per token and weight of the layers, and the two products of attention over half of the square."""
    weights = shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate)
    return 2.0 * tokens * weights + 2.0 * shape.layers * shape.hidden * tokens * (tokens + 1)


@torch.inference_mode()
def _encode_images(context: Context, count: int) -> dict[str, Any]:
    size = context.sizes.shape.image_size
    encoder = ImageEncoder(context.model, count, Stats())
    pixels = torch.randn(count, 3, size, size)
    seconds = _median_seconds(context, lambda _: encoder.compute(pixels))
    context.report(f"{count} images encoded: {seconds * 1e3:.1f} ms")
    return {"images": count, "milliseconds": seconds * 1e3}


def _median_seconds(
    context: Context, run: Callable[[int], object], after_run: Callable[[], None] = lambda: None
) -> float:
    """Returns the median time of a run without the first, which warms up. `after_run` is not timed."""
    seconds = []
    for seed in range(2 if context.sizes.small else ROUNDS + 1):
        seconds.append(context.seconds(lambda seed=seed: run(seed)))
        after_run()
    return statistics.median(seconds[1:])
