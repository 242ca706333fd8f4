"""The results of a load test.

All times are in seconds, as the client sees them. TTFT is the time to the first text. E2E is the time to the end of
the answer. TPOT = (E2E - TTFT) / (tokens - 1). ITL is the time between two events with text. Throughput counts the
tokens that the server reports, over the time from the first request to the last answer. Goodput is the number of
requests per second that meet every limit. These are the definitions of vLLM's `bench serve`.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .request import Outcome

PERCENTILES = (50, 90, 95, 99)


def distribution(values: Iterable[float | None]) -> dict[str, float | None]:
    """Returns the mean and the PERCENTILES of the values that are not None; None for each if there is no value."""
    ordered = sorted(value for value in values if value is not None)
    mean = math.fsum(ordered) / len(ordered) if ordered else None
    return {"mean": mean} | {f"p{percent}": _percentile(ordered, percent) for percent in PERCENTILES}


def _percentile(ordered: list[float], percent: float) -> float | None:
    """Interpolates linearly between the two nearest values."""
    if not ordered:
        return None
    position = (len(ordered) - 1) * percent / 100
    below, fraction = int(position), position % 1
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] * (1 - fraction) + ordered[above] * fraction


def summary(outcomes: list[Outcome], seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """Returns all results of a test that took `seconds`; `limits` are seconds by the name of a time (`ttft`, ...)."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    refused = errors.pop("429", 0)
    output_tokens = sum(outcome.output_tokens for outcome in answered)
    good = [o for o in answered if all(_meets(getattr(o, name), limit) for name, limit in limits.items())]
    return {
        "requests": len(outcomes),
        "ok": len(answered),
        "refused": refused,
        "failed": sum(errors.values()),
        "errors": dict(errors),
        "first_failure": next((f"{o.error}: {o.detail}" for o in outcomes if o.error in errors), None),
        "seconds": seconds,
        "requests_per_second": len(answered) / seconds,
        "goodput_requests_per_second": len(good) / seconds if limits else None,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in answered),
        "cached_tokens": sum(outcome.cached_tokens for outcome in answered),
        "output_tokens": output_tokens,
        "output_tokens_per_second": output_tokens / seconds,
        "ttft_seconds": distribution(outcome.ttft for outcome in answered),
        "tpot_seconds": distribution(outcome.tpot for outcome in answered),
        "itl_seconds": distribution(time for outcome in answered for time in outcome.inter_event_times),
        "e2e_seconds": distribution(outcome.e2e for outcome in answered),
    }


def format_summary(results: dict[str, Any]) -> str:
    """Returns the summary as a table for people; its distributions are in milliseconds."""
    lines = [f"{name:28}{_format(value)}" for name, value in results.items() if not isinstance(value, dict)]
    lines.append(f"{'milliseconds':28}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p95", "p99")))
    for name in ("ttft", "tpot", "itl", "e2e"):
        values = results[f"{name}_seconds"].values()
        lines.append(f"{name:28}" + "".join(f"{'-' if v is None else f'{v * 1e3:.1f}':>10}" for v in values))
    lines += [f"error: {error} ({count} times)" for error, count in results["errors"].items()]
    return "\n".join(lines)


def _format(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _meets(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit
