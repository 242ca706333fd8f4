"""The parts of a step and their times, as one table."""

import statistics
from collections.abc import Sequence
from typing import Any

from .step_timer import OTHER, StepTimes

SCHEDULE, INPUTS, IMAGE, LINEAR = "schedule", "inputs", "image", "linear layers"
ATTENTION, ROW_WISE, SAMPLE = "attention", "norms, row-wise", "sample"
DETOKENISE, EVENTS = "detokenise", "events"
PARTS = (SCHEDULE, INPUTS, IMAGE, LINEAR, ATTENTION, ROW_WISE, SAMPLE, DETOKENISE, EVENTS, OTHER)
STEP = "step"

DECODE_ONLY, WITH_PREFILL, NOTHING_LAUNCHED = "decode only", "with prefill", "nothing launched"
KINDS = (DECODE_ONLY, WITH_PREFILL, NOTHING_LAUNCHED)


def profile(steps: Sequence[StepTimes]) -> dict[str, Any]:
    """Returns, for each kind that `steps` has, their number and the times of all PARTS and of the whole STEP.

    The times are median and mean milliseconds a step, and the share of the mean. The means of the parts add up to that
    of the step; their medians need not.
    """
    of_kind = {kind: [step for step in steps if step.kind == kind] for kind in KINDS}
    return {kind: _times(some) for kind, some in of_kind.items() if some}


def _times(steps: Sequence[StepTimes]) -> dict[str, Any]:
    seconds = {part: [step.parts.get(part, 0.0) for step in steps] for part in PARTS}
    seconds[STEP] = [step.seconds for step in steps]
    whole = statistics.fmean(seconds[STEP])
    milliseconds = {
        part: {
            "median_ms": statistics.median(values) * 1e3,
            "mean_ms": statistics.fmean(values) * 1e3,
            "share": statistics.fmean(values) / whole,
        }
        for part, values in seconds.items()
    }
    return {"steps": len(steps), "parts": milliseconds}


def format_profile(times: dict[str, Any]) -> str:
    """Returns the result of `profile` as a table for people."""
    headings = [f"{kind}: {of_kind['steps']} steps" for kind, of_kind in times.items()]
    lines = [
        f"{'milliseconds a step':20}" + "".join(f"{heading:>30}" for heading in headings),
        f"{'':20}" + f"{'median':>12}{'mean':>9}{'share':>9}" * len(times),
    ]
    for part in (*PARTS, STEP):
        lines.append(f"{part:20}" + "".join(_cells(**of_kind["parts"][part]) for of_kind in times.values()))
    return "\n".join(lines)


def _cells(median_ms: float, mean_ms: float, share: float) -> str:
    return f"{median_ms:12.3f}{mean_ms:9.3f}{share:9.1%}"
