"""One engine's turn in a round: its server is started, warmed and asked by more and more callers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from llava_serving.bench.request import Outcome, Target
from llava_serving.bench.workload import Workload

from .engine import Engine, PreparationError
from .load import burst
from .running_server import RunningServer

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Bursts:
    """How many callers at once, one burst after the other, and what they ask."""

    callers: tuple[int, ...]
    workload: Workload


def measure_turn(engine: Engine, bursts: Bursts, round_index: int, cache: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each burst. Raises PreparationError if the server does not start or a request fails."""
    load_before = os.getloadavg()[0]
    with RunningServer(engine, cache / f"{engine.label.replace(' ', '-')}.log") as server:
        target = Target(server.url, engine.api, stream=True)
        seed = 1_000_000 * (round_index + 1)
        _check(burst(target, replace(bursts.workload, output_tokens=(WARM_UP_TOKENS,) * 2), 1, seed)[1])
        for callers in bursts.callers:
            seconds, outcomes = burst(target, bursts.workload, callers, seed + callers)
            _check(outcomes)
            row = {
                "engine": engine.label, "round": round_index, "callers": callers, "seconds": seconds,
                "start_seconds": server.start_seconds, "resident_gib": server.resident_gib(),
                "load_average": load_before, "requests": [_request(outcome) for outcome in outcomes],
            }  # fmt: skip
            print(_line(row), flush=True)
            yield row


def _check(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise PreparationError(f"a request failed: {outcome.error}: {outcome.detail}")


def _request(outcome: Outcome) -> dict[str, Any]:
    return {
        "ttft": outcome.ttft, "e2e": outcome.e2e, "tpot": outcome.tpot, "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens, "output_tokens": outcome.output_tokens,
        "inter_token": outcome.inter_event_times,
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    requests = row["requests"]
    tokens = sum(request["output_tokens"] for request in requests)
    ttft, tpot = (fmean(request[name] or 0 for request in requests) for name in ("ttft", "tpot"))
    return (
        f"round {row['round'] + 1}  {row['engine']:22} {row['callers']:3} callers  {row['seconds']:7.2f} s  "
        f"{tokens / row['seconds']:6.1f} tokens/s  TTFT {ttft:6.2f} s  {1e3 * tpot:6.1f} ms a token"
    )
