"""How long a device takes for something short, without what the host adds to it."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 7


def seconds_each(run: Callable[[int], object], device: torch.device, calls: int = 20) -> float:
    """The median over rounds of `calls` calls, which are captured as one CUDA graph. `run` is told the call's number.

    On a CPU it is the time of one call.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        run(0)
        return time.perf_counter() - began
    run(0)  # compiles
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(0)  # makes workspaces, which cannot be captured
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for number in range(calls):
                run(number)
    graph.replay()
    return statistics.median(_seconds(graph) / calls for _ in range(ROUNDS))


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
