"""The device time of a short operation, without the host's time to launch it."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 7


def seconds_per_call(run: Callable[[int], object], device: torch.device, calls: int = 20) -> float:
    """Returns the median over rounds of `calls` calls, which are captured as one CUDA graph.

    `run` receives the index of the call. On a CPU the result is the time of one call.
    """
    if device.type != "cuda":
        started = time.perf_counter()
        run(0)
        return time.perf_counter() - started
    run(0)  # compiles
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(0)  # makes workspaces, which cannot be captured
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(calls):
                run(index)
    graph.replay()
    return statistics.median(_replay_seconds(graph) / calls for _ in range(ROUNDS))


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) / 1e3
