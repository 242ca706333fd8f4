"""A burst: requests that are sent all at once, each with another picture, and the time of every token."""

import json
import threading
import time
from collections.abc import Iterator

from llava_serving.bench.request import Outcome, Target, send
from llava_serving.bench.workload import Workload, request_bodies


def burst(target: Target, workload: Workload, callers: int, seed: int) -> tuple[float, list[Outcome]]:
    """Sends one request from each of `callers` threads. Returns the seconds to the last answer, and the outcomes."""
    bodies = list(greedy_bodies(target, workload, callers, seed))
    outcomes: list[Outcome | None] = [None] * callers
    started = threading.Barrier(callers + 1)

    def call(index: int) -> None:
        started.wait()
        outcomes[index] = send(target, bodies[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    started.wait()
    begin = time.monotonic()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin, [outcome for outcome in outcomes if outcome is not None]


def greedy_bodies(target: Target, workload: Workload, count: int, seed: int) -> Iterator[bytes]:
    """Yields the bodies of `llava-serving bench`, with temperature 0."""
    for body in request_bodies(target, "model", workload, count, seed):
        content = json.loads(body)
        (content if target.api == "openai" else content["input_data"]["parameters"])["temperature"] = 0
        yield json.dumps(content).encode()
