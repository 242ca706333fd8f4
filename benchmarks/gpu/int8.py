"""The language model with 8-bit weights: its kernels, prompts, decode steps, launches and equal answers."""

from collections.abc import Iterator
from typing import Any

import torch
from packed_model import pack

from llava_serving.model.backend import TORCH, triton_backend
from llava_serving.weights.packing import int8_on_gpu

from . import decode, equality, kernels_int8, launches, prefill
from .context import Context
from .kernels import Case, all_hold, measure_cases
from .random_model import random_llava


def measure(context: Context) -> dict[str, Any]:
    """Packs the measured model, and releases it at the end. The profiler runs after all that is timed."""
    sizes = context.sizes
    rows = measure_cases(context, _cases(context))
    layers = context.model.model.language_model.layers
    unpacked_weight_bytes = decode.weight_bytes(layers)
    pack(context.model, int8_on_gpu(sizes.device, sizes.dtype))
    context.free_memory()
    weight_bytes = decode.weight_bytes(layers)
    context.report(f"layers packed: {weight_bytes / 1e9:.3g} GB of {unpacked_weight_bytes / 1e9:.3g} GB")
    prompts = prefill.measure_prompts(context, sizes.int8_prefills)
    capture, steps = decode.measure_graphs(context, sizes.int8_batches)
    context.free_memory()
    launch_rows = [launches.count_path(context, "eager", batch) for batch in sizes.int8_batches]
    del layers
    context.release_model()
    paths = [("torch eager", TORCH, False), ("triton graph", triton_backend(sizes.device), True)]
    equal = equality.compare_paths(context, _small_model(context), paths, sizes.int8_requests)
    return {
        "weight_bytes": weight_bytes, "unpacked_weight_bytes": unpacked_weight_bytes, "kernels": rows,
        "prompts": prompts, "decode": {"capture": capture, "rows": steps},
        "launches": {"counted": launches.counted(sizes.device), "rows": launch_rows}, "equality": equal,
        "holds": all_hold(context, rows) and equal["holds"],
    }  # fmt: skip


def _cases(context: Context) -> Iterator[Case]:
    for name in kernels_int8.LAYERS:
        for case in kernels_int8.cases(context.sizes, name):
            yield Case(*case)
        context.free_memory()


def _small_model(context: Context) -> Any:
    model = random_llava(context.sizes.equality_shape, context.sizes.device, torch.float32, equality.WEIGHT_STD)
    pack(model, int8_on_gpu(context.sizes.device, torch.float32))
    return model
