"""Decode steps of the runner: as captured graphs, as separate launches, and by torch's operators."""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from llava_serving.engine.scheduler import Scheduler
from llava_serving.model.backend import TORCH, Backend, triton_backend
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block
from llava_serving.model.model_runner import ModelRunner

from .context import Context
from .runners import KVCacheDtype, make_runner, random_ids
from .sizes import Sizes
from .steps import Steps

WARM_UP = 3
SPARE = 48  # tokens that the first sequences of a batch decode while the last ones are prefilled


def measure(context: Context) -> dict[str, Any]:
    """Measures each path with its own KV cache, one after the other."""
    sizes = context.sizes
    triton, all_batches = triton_backend(sizes.device), sizes.batches
    capture, rows = measure_graphs(context, all_batches)
    rows += measure_graphs(context, all_batches[-1:], "graph, int8 KV", "int8")[1]
    rows += _eager(context, "eager", triton, all_batches, sizes.steps)
    rows += _eager(context, "torch", TORCH, (all_batches[0], all_batches[-1]), sizes.torch_steps)
    return {"capture": capture, "rows": rows, "holds": True}


def measure_graphs(
    context: Context, batches: tuple[int, ...], path: str = "graph", kv_cache_dtype: KVCacheDtype = "auto"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the capture's time and memory, and the captured steps of each batch."""
    sizes = context.sizes
    context.free_memory()
    runner, scheduler = _runner(context, triton_backend(sizes.device), kv_cache_dtype)
    capture = _capture(context, runner)
    rows = [_measure_batch(context, path, runner, scheduler, batch, sizes.steps) for batch in batches]
    return capture, rows


def _eager(context: Context, path: str, backend: Backend, batches: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    context.free_memory()
    runner, scheduler = _runner(context, backend)
    return [_measure_batch(context, path, runner, scheduler, batch, steps) for batch in batches]


def _runner(context: Context, backend: Backend, kv_cache_dtype: KVCacheDtype = "auto") -> tuple[ModelRunner, Scheduler]:
    sizes = context.sizes
    max_new_tokens = _max_new_tokens(sizes)
    blocks = max(sum(-(-(n + max_new_tokens) // BLOCK_SIZE) for n in sizes.lengths(batch)) for batch in sizes.batches)
    return make_runner(
        context.model, backend, max(sizes.batches), sizes.max_step_tokens, blocks, kv_cache_dtype=kv_cache_dtype
    )


def _max_new_tokens(sizes: Sizes) -> int:
    return sizes.steps + WARM_UP + SPARE


def _capture(context: Context, runner: ModelRunner) -> dict[str, Any]:
    """Enables static decode, as a start of the service does. On a CPU no graph is captured."""
    on_gpu = context.sizes.device.type == "cuda"
    free_before = torch.cuda.mem_get_info()[0] if on_gpu else 0
    seconds = context.seconds(lambda: runner.enable_static_decode(max(context.sizes.batches)))
    mib = (free_before - torch.cuda.mem_get_info()[0]) / 2**20 if on_gpu else None
    context.report(f"capture: {seconds:.1f} s" + ("" if mib is None else f", {mib:.0f} MiB"))
    return {"seconds": seconds, "mib": mib}


def _measure_batch(
    context: Context, path: str, runner: ModelRunner, scheduler: Scheduler, num_seqs: int, count: int
) -> dict[str, Any]:
    sizes = context.sizes
    steps = Steps(runner, scheduler)
    for seed, length in enumerate(sizes.lengths(num_seqs)):
        steps.add(random_ids(length, sizes.shape.vocab_size, seed), _max_new_tokens(sizes))
    steps.prefill()
    for _ in range(WARM_UP):
        steps.step()
    tokens_before = sum(steps.lengths)
    launch_seconds, ends = [], [time.perf_counter()]
    for _ in range(count):
        launch_seconds.append(steps.step())
        ends.append(time.perf_counter())
    mean_tokens = (tokens_before + sum(steps.lengths)) / 2
    steps.clear()
    seconds = statistics.median(end - begin for begin, end in pairwise(ends))
    row = {"path": path, "sequences": num_seqs, "steps": count, "mean_length": mean_tokens / num_seqs}
    token_bytes = (
        bytes_per_block(context.model.config.text_config, sizes.shape.layers, _cache_dtype(runner)) / BLOCK_SIZE
    )
    row |= _step_rates(context, num_seqs, mean_tokens * token_bytes, seconds, statistics.median(launch_seconds))
    context.report(f"decode, {path}, {num_seqs}: {seconds * 1e3:.2f} ms, {row['tb_per_second']:.2f} TB/s")
    return row


def _cache_dtype(runner: ModelRunner) -> torch.dtype:
    return runner.stages[0].cache.layers[0].keys.dtype


def weight_bytes(layers: nn.Module) -> int:
    """Returns the bytes of the layers' weights. Packed ones are buffers."""
    return sum(weight.nbytes for weight in (*layers.parameters(), *layers.buffers()))


def _step_rates(
    context: Context, num_seqs: int, kv_bytes: float, seconds: float, launch_seconds: float
) -> dict[str, Any]:
    """Returns the rates of a step that reads `kv_bytes` of keys and values."""
    sizes, model = context.sizes, context.model
    layers = weight_bytes(model.model.language_model.layers)
    head = sizes.shape.vocab_size * sizes.shape.hidden * sizes.dtype.itemsize
    return {
        "milliseconds": seconds * 1e3, "host_milliseconds": launch_seconds * 1e3,
        "tokens_per_second": num_seqs / seconds, "weight_bytes": layers + head, "kv_bytes": kv_bytes,
        **context.rate(layers + head + kv_bytes, seconds),
    }  # fmt: skip
