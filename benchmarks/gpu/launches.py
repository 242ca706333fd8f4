"""How many kernels a decode step and a layer launch. The profiler counts on a GPU; on a CPU, calls are counted.

This phase runs after all timed phases, because the driver is slower after a profiler has run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from llava_serving.model.backend import triton_backend
from llava_serving.model.kernels import decode_attention

from .context import Context
from .runners import make_runner, random_ids
from .steps import Steps

PROMPT = 8  # tokens; launches do not depend on lengths
HOST_CALLS = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
COPIES = ("Memcpy", "Memset")


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    rows = [count_path(context, "eager", batch) for batch in (sizes.batches[0], sizes.batches[1], sizes.batches[-1])]
    rows.append(count_path(context, "graph", 1))
    return {"counted": counted(sizes.device), "rows": rows, "holds": True}


def counted(device: torch.device) -> str:
    """Returns what a path's launches are."""
    return "calls" if device.type == "cpu" else "kernels"


def count_path(context: Context, path: str, num_seqs: int) -> dict[str, Any]:
    sizes = context.sizes
    static = path == "graph"
    backend = triton_backend(sizes.device)
    steps = Steps(*make_runner(context.model, backend, num_seqs, sizes.max_step_tokens, 2 * num_seqs, static=static))
    for seed in range(num_seqs):
        steps.add(random_ids(PROMPT, sizes.shape.vocab_size, seed), PROMPT)
    steps.prefill()
    for _ in range(2):
        steps.step()
    steps.collect()

    def step() -> None:
        steps.step()
        steps.collect()

    row = {"path": path, "sequences": num_seqs} | _count_step(step, sizes.device, sizes.shape.layers)
    context.report(f"launches, {path}, {num_seqs}: {row['launches']} a step, {row['a_layer']} a layer")
    steps.clear()
    context.free_memory()
    return row


def _count_step(step: Callable[[], None], device: torch.device, layers: int) -> dict[str, Any]:
    kernels, copies, host_calls = (_profile if device.type == "cuda" else _record_calls)(step)
    return {
        "launches": len(kernels), "a_layer": _per_layer(kernels, layers), "copies": copies, "host_calls": host_calls,
        "names": Counter(name[:80] for name in kernels),
    }  # fmt: skip


def _per_layer(kernels: list[str], layers: int) -> float | None:
    """Returns the launches per layer, from the distance between the attention kernels of the first and last layer."""
    attention = decode_attention._decode.__name__
    indices = [index for index, name in enumerate(kernels) if name == attention]
    return (indices[-1] - indices[0]) / (layers - 1) if len(indices) == layers > 1 else None


def _profile(step: Callable[[], None]) -> tuple[list[str], int, int]:
    """Returns the kernels' names in order, the number of copies, and the number of driver calls that launched both."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    events = sorted(trace.events(), key=lambda event: event.time_range.start)
    on_device = [event.name for event in events if event.device_type == DeviceType.CUDA]
    kernels = [name for name in on_device if not name.startswith(COPIES)]
    calls = [event for event in events if event.device_type == DeviceType.CPU and event.name.startswith(HOST_CALLS)]
    return kernels, len(on_device) - len(kernels), len(calls)


def _record_calls(step: Callable[[], None]) -> tuple[list[str], int, None]:
    """Returns the names of Triton's launches and of torch's operators that compute.

    A GPU would not launch exactly one kernel for each.
    """
    recorder = _CallRecorder()
    with _recording_launches(recorder), recorder:
        step()
    return recorder.names, 0, None


class _CallRecorder(TorchDispatchMode):
    """Records the names of the operators that make new tensors, in order, except while it is `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused and not getattr(func, "is_view", False) and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def _recording_launches(recorder: _CallRecorder) -> Iterator[None]:
    """Records each kernel that Triton's interpreter runs, without the torch operators that it runs for the kernel."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def recording_run(kernel: Any, *args: Any, **options: Any) -> Any:
        recorder.names.append(kernel.fn.__name__)
        recorder.paused = True
        try:
            return run(kernel, *args, **options)
        finally:
            recorder.paused = False

    with patch.object(InterpretedFunction, "run", recording_run):
        yield
