"""`llava-serving bench`: sends requests to this service, or to an OpenAI-compatible server, and measures the answers.

Prints the results, which bench/statistics.py defines. The last line is JSON and holds all of them. The key of an
endpoint is read from AZUREML_ENDPOINT_KEY.

With --profile it starts the service in this process, without HTTP, sends it the same requests, and prints how the
steps of its engine spend their time. docs/profile.md explains the table. The settings are LLAVA_*, as for the service.
"""

import argparse
import json
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..bench.request import Target, send
from ..bench.statistics import format_summary, summary
from ..bench.workload import WORKLOADS, Workload, request_bodies
from ..client.credentials import KEY_VARIABLE
from ..errors import StartupError
from .serve import OPENMP_ENVIRONMENT

T = TypeVar("T")
LIMITS = ("ttft", "tpot", "e2e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:5001/score", help="default: the server of make serve")
    parser.add_argument("--api", choices=("score", "openai"), default="score", help="the form of the requests")
    parser.add_argument("--model", default="llava", help="the model name in the openai form")
    parser.add_argument(
        "--header", action="append", type=header, default=[], metavar="NAME:VALUE",
        help="an HTTP header; a process list shows it, so set AZUREML_ENDPOINT_KEY for a key",
    )  # fmt: skip
    parser.add_argument("--no-stream", action="store_true", help="ask for complete answers, which have no TTFT")
    parser.add_argument(
        "--workload", choices=WORKLOADS, default="image", help="default: image, which is one image per request"
    )
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument(
        "--output-tokens", type=token_range, default=(64, 64), metavar="N or MIN:MAX", help="default: 64"
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="clients that wait for each answer (closed loop), default: 8"
    )
    parser.add_argument(
        "--request-rate", type=float, metavar="R", help="Poisson arrivals at R requests per second (open loop)"
    )
    parser.add_argument("--num-requests", type=int, default=64, help="default: 64")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="requests before the test, default: 2")
    parser.add_argument("--seed", type=int, default=0, help="decides images, questions, lengths and arrival times")
    parser.add_argument(
        "--goodput", nargs="*", type=limit, default=[], metavar="NAME:MS", help=f"limits on {', '.join(LIMITS)}"
    )
    parser.add_argument(
        "--profile", action="store_true", help="measure the parts of the engine's steps, in this process; see above"
    )
    parser.add_argument(
        "--model-dir", type=Path, help="for --profile; default: AZUREML_MODEL_DIR, else the embedded demo model"
    )


def token_range(text: str) -> tuple[int, int]:
    """Returns the minimum and maximum of N or MIN:MAX."""
    first, _, second = text.partition(":")
    minimum, maximum = int(first), int(second or first)
    if not 1 <= minimum <= maximum:
        raise argparse.ArgumentTypeError("MIN must be at least 1 and at most MAX")
    return minimum, maximum


def header(text: str) -> tuple[str, str]:
    """Returns the name and the value of NAME:VALUE. The message about another text does not repeat it."""
    name, colon, value = text.partition(":")
    if not colon or not is_header(text):
        raise argparse.ArgumentTypeError("a header is NAME:VALUE in printable ASCII")
    return name, value


def is_header(text: str) -> bool:
    """Returns whether a header can hold `text`. http.client repeats other texts, also a key, in its message."""
    return text.isascii() and text.isprintable()


def limit(text: str) -> tuple[str, float]:
    """Returns the name and the seconds of NAME:MS."""
    name, _, milliseconds = text.partition(":")
    if name not in LIMITS:
        raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(LIMITS)}")
    return name, float(milliseconds) / 1e3


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints. Returns 0 if there was an answer and no error but 429, 2 for an invalid key, else 1."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not is_header(key):
        print("llava-serving: the key has characters that are not printable ASCII", file=sys.stderr)
        return 2
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    target = Target(arguments.url, arguments.api, not arguments.no_stream, headers | dict(arguments.header))
    workload = Workload(arguments.workload, arguments.image_size, arguments.output_tokens)
    count = arguments.warmup + arguments.num_requests
    bodies = list(request_bodies(target, arguments.model, workload, count, arguments.seed))
    if arguments.profile:
        return run_profile(arguments, bodies)
    send_body = partial(send, target)
    for body in bodies[: arguments.warmup]:
        send_body(body)
    started = time.monotonic()
    outcomes = send_all(send_body, bodies[arguments.warmup :], arguments)
    results = summary(outcomes, time.monotonic() - started, dict(arguments.goodput))
    print(format_summary(results))
    print_json(results, arguments)
    return 0 if results["ok"] and not results["failed"] else 1


def run_profile(arguments: argparse.Namespace, bodies: list[bytes]) -> int:
    """Measures the engine's steps and prints them. Returns 0 if every request was answered, else 1."""
    environment = OPENMP_ENVIRONMENT | {"LLAVA_ENFORCE_EAGER": "true"}  # the parts of a CUDA graph have no times
    if arguments.model_dir is not None:
        os.environ["AZUREML_MODEL_DIR"] = str(arguments.model_dir)
    os.environ.update(environment | dict(os.environ))
    # Imported here, because they import torch, which reads the environment.
    from ..profiling.local_service import LocalService
    from ..profiling.profile_table import format_profile, profile

    try:
        service = LocalService()
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    for body in bodies[: arguments.warmup]:
        service.answer(body)
    errors: list[str | None] = []
    steps = service.steps_of(
        lambda: errors.extend(send_all(service.answer, bodies[arguments.warmup :], arguments)),
    )
    failures = [error for error in errors if error is not None]
    times = profile(steps)
    print(f"{service.description}\n\n{format_profile(times)}")
    if failures:
        print(f"llava-serving: {len(failures)} of {len(errors)} requests failed: {failures[0]}", file=sys.stderr)
    print_json({"profile": times, "requests": len(errors), "failed": len(failures)}, arguments)
    return 1 if failures else 0


def print_json(results: dict[str, object], arguments: argparse.Namespace) -> None:
    """Prints the results and the arguments in one line, except headers, which may hold a secret."""
    configuration = {name: value for name, value in vars(arguments).items() if name not in ("header", "run", "command")}
    complete = results | {"configuration": configuration, "python": platform.python_version()}
    print(json.dumps(complete, default=str))


def send_all(send_body: Callable[[bytes], T], bodies: list[bytes], arguments: argparse.Namespace) -> list[T]:
    """Sends all bodies as --concurrency or --request-rate say, and returns the outcomes."""
    if arguments.request_rate is None:
        return closed_loop(send_body, bodies, arguments.concurrency)
    times = arrival_times(len(bodies), arguments.request_rate, arguments.seed)
    return open_loop(send_body, bodies, times)


def closed_loop(send_body: Callable[[bytes], T], bodies: list[bytes], concurrency: int) -> list[T]:
    """Sends all bodies from `concurrency` threads; each thread waits for its answer before its next request."""
    remaining = iter(bodies)
    lock = threading.Lock()
    outcomes: list[T] = []

    def send_remaining() -> None:
        while True:
            with lock:
                body = next(remaining, None)
            if body is None:
                return
            outcomes.append(send_body(body))

    _run_threads([send_remaining] * concurrency)
    return outcomes


def open_loop(send_body: Callable[[bytes], T], bodies: list[bytes], times: list[float]) -> list[T]:
    """Sends each body at its time, in seconds from the start, however many requests still wait for their answers."""
    started = time.monotonic()
    outcomes: list[T] = []

    def send_at(body: bytes, seconds: float) -> None:
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        outcomes.append(send_body(body))

    _run_threads([partial(send_at, body, seconds) for body, seconds in zip(bodies, times, strict=True)])
    return outcomes


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Returns the times, in seconds, of `count` requests of a Poisson process with `rate` requests per second."""
    rng = random.Random(f"arrivals {seed}")
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def _run_threads(functions: Iterable[Callable[[], None]]) -> None:
    """Runs each function in a thread of its own and waits for all of them."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
