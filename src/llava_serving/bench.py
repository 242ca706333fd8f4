"""`llava-serving bench`: sends requests to this service, or to one that speaks OpenAI's chat completions, and measures.

TTFT is the time to the first text, E2E to the end of the answer, TPOT = (E2E - TTFT) / (tokens - 1), ITL the time
between two events with text, all as the caller sees them, in seconds. Throughput counts the tokens that the server
says it made, over the time from the first request to the last answer. Goodput is requests a second that meet every
limit given (the definitions of vLLM's `bench serve`). The last line of the output is all of it as JSON.
"""

import argparse
import json
import math
import platform
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .bench_client import Outcome, Target, send
from .bench_workload import WORKLOADS, Question, bodies

PERCENTILES = (50, 90, 95, 99)
LIMITS = ("ttft", "tpot", "e2e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:5001/score")
    parser.add_argument("--api", choices=("score", "openai"), default="score", help="the request's form")
    parser.add_argument("--model", default="llava", help="of the openai form")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="such as Authorization")
    parser.add_argument("--no-stream", action="store_true", help="whole answers; there is no TTFT then")
    parser.add_argument("--workload", choices=WORKLOADS, default="image")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--output-tokens", type=token_range, default=(64, 64), metavar="N or MIN:MAX")
    parser.add_argument("--concurrency", type=int, default=8, help="callers that wait for each answer (closed loop)")
    parser.add_argument("--request-rate", type=float, metavar="R", help="Poisson arrivals, R a second (open loop)")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="requests before the clock starts")
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
    headers = dict(header.split(":", 1) for header in arguments.header)
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


@dataclass(frozen=True)
class Distribution:
    """Of one figure over all requests; None where no request had it."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


def distribution(values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and percentiles, linearly interpolated between the two nearest values."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return asdict(Distribution(None, None, None, None, None))
    cuts = [percentile(ordered, p) for p in PERCENTILES]
    return asdict(Distribution(math.fsum(ordered) / len(ordered), *cuts))


def percentile(ordered: list[float], percent: float) -> float:
    place = (len(ordered) - 1) * percent / 100
    below, share = int(place), place % 1
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] * (1 - share) + ordered[above] * share


def summary(outcomes: list[Outcome], seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if outcome.error is None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    refused = errors.pop("429", 0)
    output_tokens = sum(outcome.output_tokens for outcome in answered)
    good = [o for o in answered if all(_within(getattr(o, name), most) for name, most in limits.items())]
    return {
        "requests": len(outcomes),
        "ok": len(answered),
        "refused": refused,
        "failed": sum(errors.values()),
        "errors": dict(errors),
        "seconds": seconds,
        "requests_per_second": len(answered) / seconds,
        "goodput_requests_per_second": len(good) / seconds if limits else None,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in answered),
        "cached_tokens": sum(outcome.cached_tokens for outcome in answered),
        "output_tokens": output_tokens,
        "output_tokens_per_second": output_tokens / seconds,
        "ttft_seconds": distribution(outcome.ttft for outcome in answered),
        "tpot_seconds": distribution(outcome.tpot for outcome in answered),
        "itl_seconds": distribution(gap for outcome in answered for gap in outcome.gaps),
        "e2e_seconds": distribution(outcome.e2e for outcome in answered),
    }


def card(figures: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [f"{name:28}{_shown(value)}" for name, value in figures.items() if not isinstance(value, dict)]
    lines.append(f"{'milliseconds':28}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p95", "p99")))
    for name in ("ttft", "tpot", "itl", "e2e"):
        values = figures[f"{name}_seconds"].values()
        lines.append(f"{name:28}" + "".join(f"{'-' if v is None else f'{v * 1e3:.1f}':>10}" for v in values))
    lines += [f"error: {reason} ({count} times)" for reason, count in figures["errors"].items()]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _within(value: float | None, most: float) -> bool:
    return value is not None and value <= most


def _together(calls: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
