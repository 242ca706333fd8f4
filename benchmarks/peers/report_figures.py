"""The figures of a result: for each engine and number of callers, the median over the rounds."""

from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds. `ttft` and `tpot` are means over the requests of a burst, in seconds."""

    rounds: int
    seconds: float
    tokens_per_second: float
    ttft: float
    tpot: float
    resident_gib: float
    start_seconds: float


def figures(result: Result) -> dict[str, dict[int, Figures]]:
    """Returns the figures by engine, in the order of the result, and by number of callers."""
    keys = {(row["engine"], row["callers"]): None for row in result["bursts"]}
    found: dict[str, dict[int, Figures]] = {}
    for engine in result["engines"]:
        callers = sorted(number for name, number in keys if name == engine)
        if callers:
            found[engine] = {number: _figures(_rows(result, engine, number)) for number in callers}
    return found


def _rows(result: Result, engine: str, callers: int) -> list[dict[str, Any]]:
    return [row for row in result["bursts"] if (row["engine"], row["callers"]) == (engine, callers)]


def _figures(rows: list[dict[str, Any]]) -> Figures:
    return Figures(
        rounds=len(rows),
        seconds=median(row["seconds"] for row in rows),
        tokens_per_second=median(_tokens(row) / row["seconds"] for row in rows),
        ttft=median(_mean(row, "ttft") for row in rows),
        tpot=median(_mean(row, "tpot") for row in rows),
        resident_gib=median(row["resident_gib"] for row in rows),
        start_seconds=median(row["start_seconds"] for row in rows),
    )


def _tokens(row: dict[str, Any]) -> int:
    return sum(request["output_tokens"] for request in row["requests"])


def _mean(row: dict[str, Any], name: str) -> float:
    return fmean(request[name] for request in row["requests"] if request[name] is not None)


def bandwidth(result: Result) -> float:
    """Returns the median over the rounds of the best read rate, in bytes per second."""
    return 1e9 * median(figures["read_gb_per_second"] for figures in result["rooflines"])


def operations_per_second(result: Result, dtype: str) -> float:
    return 1e9 * median(figures[f"{dtype}_gflop_per_second"] for figures in result["rooflines"])


def bits(result: Result, engine: str) -> float:
    """Returns the bits of a weight in the language model's matrices, scales included where the engine has them."""
    return 8 * float(result["engines"][engine]["weight_bytes"]) / float(result["matrix_parameters"])


def prompt_tokens(result: Result) -> tuple[int, int] | None:
    """Returns the mean length of the prompts, and how much of it this service's prefix cache had. None if no engine
    tells the length."""
    requests = [request for row in result["bursts"] for request in row["requests"] if request["prompt_tokens"]]
    if not requests:
        return None
    cached = [request["cached_tokens"] for request in requests if request["cached_tokens"]]
    length = fmean(request["prompt_tokens"] for request in requests)
    return round(length), round(fmean(cached)) if cached else 0
