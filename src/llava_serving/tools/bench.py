"""`llava-serving bench`: sends requests to this service, or to one that speaks OpenAI's chat completions, and measures.

Prints the figures, which figures.py defines, and as its last line all of them as JSON. An endpoint's key is read from
AZUREML_ENDPOINT_KEY.
"""

import argparse
import json
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

from ..bench.caller import Outcome, Target, send
from ..bench.statistics import card, summary
from ..bench.workload import WORKLOADS, Question, bodies
from ..client.access import KEY_VARIABLE

LIMITS = ("ttft", "tpot", "e2e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:5001/score", help="by default that of make serve")
    parser.add_argument("--api", choices=("score", "openai"), default="score", help="the request's form")
    parser.add_argument("--model", default="llava", help="of the openai form")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="such as Authorization")
    parser.add_argument("--no-stream", action="store_true", help="whole answers; there is no TTFT then")
    parser.add_argument(
        "--workload", choices=WORKLOADS, default="image", help="by default image: one with each request"
    )
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="by default 224")
    parser.add_argument(
        "--output-tokens", type=token_range, default=(64, 64), metavar="N or MIN:MAX", help="by default 64"
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="callers that wait for each answer (closed loop), by default 8"
    )
    parser.add_argument("--request-rate", type=float, metavar="R", help="Poisson arrivals, R a second (open loop)")
    parser.add_argument("--num-requests", type=int, default=64, help="by default 64")
    parser.add_argument(
        "--warmup", type=int, default=2, metavar="N", help="requests before the clock starts, by default 2"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same pictures, questions, lengths and arrivals")
    parser.add_argument(
        "--goodput", nargs="*", type=limit, default=[], metavar="NAME:MS", help=f"limits on {', '.join(LIMITS)}"
    )


def token_range(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    found = int(least), int(most or least)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError("MIN must be at least 1 and at most MAX")
    return found


def limit(text: str) -> tuple[str, float]:
    """(name, seconds)."""
    name, _, milliseconds = text.partition(":")
    if name not in LIMITS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(LIMITS)}")
    return name, float(milliseconds) / 1e3


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if there were answers and no failure but 429."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
    headers |= dict(header.split(":", 1) for header in arguments.header)
    target = Target(arguments.url, arguments.api, not arguments.no_stream, headers)
    question = Question(arguments.workload, arguments.image_size, arguments.output_tokens)
    whole = list(bodies(target, arguments.model, question, arguments.warmup + arguments.num_requests, arguments.seed))
    for body in whole[: arguments.warmup]:
        send(target, body)
    measured = whole[arguments.warmup :]
    started = time.monotonic()
    if arguments.request_rate is None:
        outcomes = closed_loop(target, measured, arguments.concurrency)
    else:
        outcomes = open_loop(target, measured, arrivals(len(measured), arguments.request_rate, arguments.seed))
    figures = summary(outcomes, time.monotonic() - started, dict(arguments.goodput))
    told = {name: value for name, value in vars(arguments).items() if name not in ("header", "run", "command")}
    print(card(figures))
    print(json.dumps(figures | {"configuration": told, "python": platform.python_version()}))
    return 0 if figures["ok"] and not figures["failed"] else 1


def closed_loop(target: Target, whole: list[bytes], callers: int) -> list[Outcome]:
    """`callers` threads, each sending its next request when it has its answer."""
    waiting = iter(whole)
    lock = threading.Lock()
    outcomes: list[Outcome] = []

    def call() -> None:
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            outcomes.append(send(target, body))

    _together([call] * callers)
    return outcomes


def open_loop(target: Target, whole: list[bytes], times: list[float]) -> list[Outcome]:
    """Each request at its time, whoever is still waiting."""
    started = time.monotonic()
    outcomes: list[Outcome] = []

    def call(body: bytes, at: float) -> None:
        time.sleep(max(0.0, started + at - time.monotonic()))
        outcomes.append(send(target, body))

    _together([partial(call, body, at) for body, at in zip(whole, times, strict=True)])
    return outcomes


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds at which `count` requests of a Poisson process of `rate` a second come."""
    gaps = random.Random(f"arrivals {seed}")
    now, times = 0.0, []
    for _ in range(count):
        now += gaps.expovariate(rate)
        times.append(now)
    return times


def _together(calls: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
