"""How many kernels a decode step launches, and a layer of it: the profiler counts on a GPU, calls count on a CPU.

It comes after everything that is timed: a profiler leaves the driver slower than it was.
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
from .runners import Steps, make_runner, random_ids

PROMPT = 8  # launches do not depend on lengths
HOST_CALLS = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
COPIES = ("Memcpy", "Memset")


def measure(context: Context) -> dict[str, Any]:
    sizes = context.sizes
    rows = [_row(context, "eager", batch) for batch in (sizes.batches[0], sizes.batches[1], sizes.batches[-1])]
    rows.append(_row(context, "graph", 1))
    return {"counted": "calls" if sizes.device.type == "cpu" else "kernels", "rows": rows, "holds": True}


def _row(context: Context, path: str, num_seqs: int) -> dict[str, Any]:
    sizes = context.sizes
    static = path == "graph"
    backend = triton_backend(sizes.device)
    steps = Steps(*make_runner(context.model, backend, num_seqs, sizes.max_step_tokens, 2 * num_seqs, static=static))
    for number in range(num_seqs):
        steps.add(random_ids(PROMPT, sizes.shape.vocabulary, number), PROMPT)
    steps.prefill()
    for _ in range(2):
        steps.step()
    steps.take_in()

    def step() -> None:
        steps.step()
        steps.take_in()

    row = {"path": path, "sequences": num_seqs} | _counted(step, sizes.device, sizes.shape.layers)
    context.say(f"launches, {path}, {num_seqs}: {row['launches']} a step, {row['a_layer']} a layer")
    steps.clear()
    context.tidy()
    return row


def _counted(step: Callable[[], None], device: torch.device, layers: int) -> dict[str, Any]:
    kernels, copies, host_calls = (_by_profiler if device.type == "cuda" else _by_calls)(step)
    return {
        "launches": len(kernels), "a_layer": _of_a_layer(kernels, layers), "copies": copies, "host_calls": host_calls,
        "names": Counter(name[:80] for name in kernels),
    }  # fmt: skip


def _of_a_layer(kernels: list[str], layers: int) -> float | None:
    """By the distance between the first layer's attention and the last's."""
    attention = decode_attention._decode.__name__
    at = [number for number, name in enumerate(kernels) if name == attention]
    return (at[-1] - at[0]) / (layers - 1) if len(at) == layers > 1 else None


def _by_profiler(step: Callable[[], None]) -> tuple[list[str], int, int]:
    """Names of the kernels in order, how many copies, and how many calls of the driver launched either."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    events = sorted(trace.events(), key=lambda event: event.time_range.start)
    on_device = [event.name for event in events if event.device_type == DeviceType.CUDA]
    kernels = [name for name in on_device if not name.startswith(COPIES)]
    calls = [event for event in events if event.device_type == DeviceType.CPU and event.name.startswith(HOST_CALLS)]
    return kernels, len(on_device) - len(kernels), len(calls)


def _by_calls(step: Callable[[], None]) -> tuple[list[str], int, None]:
    """Triton's launches and torch's operators that compute: not one to one what a GPU would launch."""
    calls = _Calls()
    with _telling_launches(calls), calls:
        step()
    return calls.names, 0, None


class _Calls(TorchDispatchMode):
    """Names, in order, of the operators that make something new; none while `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused and not getattr(func, "is_view", False) and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def _telling_launches(calls: _Calls) -> Iterator[None]:
    """Triton's interpreter tells `calls` what it runs, and not what it does with torch meanwhile."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def told(kernel: Any, *args: Any, **options: Any) -> Any:
        calls.names.append(kernel.fn.__name__)
        calls.paused = True
        try:
            return run(kernel, *args, **options)
        finally:
            calls.paused = False

    with patch.object(InterpretedFunction, "run", told):
        yield
