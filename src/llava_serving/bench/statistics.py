"""What a load test found.

TTFT is the time to the first text, E2E to the end of the answer, TPOT = (E2E - TTFT) / (tokens - 1), ITL the time
between two events with text, all as the caller sees them, in seconds. Throughput counts the tokens that the server
says it made, over the time from the first request to the last answer. Goodput is requests a second that meet every
limit given (the definitions of vLLM's `bench serve`).
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .caller import Outcome

PERCENTILES = (50, 90, 95, 99)


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
        "first_failure": next((f"{o.error}: {o.why}" for o in outcomes if o.error in errors), None),
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


def _shown(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _within(value: float | None, most: float) -> bool:
    return value is not None and value <= most
