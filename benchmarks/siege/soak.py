"""Twice the load that the service takes, for minutes: every kind of request, bad input, and callers that leave."""

import random
import threading
import time
from typing import Any

from llava_serving.bench.workload import random_image

from .bodies import bad_requests, good_request
from .caller import BUSY, Caller
from .context import Phase
from .leavers import leave
from .processes import MemoryCurve

BAD, LEAVING = 0.1, 0.1  # the shares of bad input and of callers that leave
MEMORY_SECONDS = 1.0
WARM_UP = 0.2  # the share of the time before memory is compared
MOST_GROWTH_MIB = 250


def measure(phase: Phase) -> dict[str, Any]:
    seconds = phase.sizes.soak_minutes * 60
    before = phase.service.metrics()
    until = time.monotonic() + seconds
    callers = 2 * phase.service.capacity
    threads = [threading.Thread(target=_call, args=(phase, seed, until)) for seed in range(callers)]
    phase.report(f"{callers} callers for {seconds:.0f} s")
    memory, small_caller = MemoryCurve(phase.service.pid, MEMORY_SECONDS), phase.small_caller(busy=True)
    with memory as curve, phase.probe() as probe, small_caller as small:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    after = phase.service.metrics()
    counters = {name: value - before[name] for name, value in after.items() if name.endswith("_total")}
    phase.figures |= {"seconds": seconds, "callers": callers, "counters": counters, "small": _answered(small.answers)}
    phase.require_probe(probe)
    _compare_memory(phase, curve)
    phase.report(f"{phase.ledger.as_json()}")
    phase.report(f"worst probe {max(probe.seconds):.2f} s, counters {counters}")
    return phase.figures


def _call(phase: Phase, seed: int, until: float) -> None:
    rng = random.Random(seed)
    picture, bad = random_image(random.Random("shared"), 64), bad_requests()
    caller = Caller(phase.service.port, phase.ledger, keep_alive=seed % 2 == 0)
    while time.monotonic() < until:
        draw = rng.random()
        if draw < LEAVING:
            leave(phase.service.port, rng, phase.ledger, picture)
            continue
        request = rng.choice(bad) if draw < LEAVING + BAD else good_request(rng, picture)
        if caller.send(request, busy=True).status in BUSY:
            time.sleep(rng.uniform(0.05, 0.3))
    caller.close()


def _answered(answers: list[Any]) -> dict[str, Any]:
    """Returns the seconds of the small requests that were answered. Others were refused, as all callers are."""
    seconds = [answer.seconds for answer in answers if answer.status == 200]
    return {"max": max(seconds, default=0.0), "seconds": seconds}


def _compare_memory(phase: Phase, curve: MemoryCurve) -> None:
    total = curve.samples[-1][0]
    early = [mib for seconds, mib in curve.samples if seconds <= 2 * WARM_UP * total and seconds >= WARM_UP * total]
    late = [mib for seconds, mib in curve.samples if seconds >= (1 - WARM_UP) * total]
    first, last = (sum(part) / max(1, len(part)) for part in (early, late))
    phase.figures["memory"] = {"after_warm_up_mib": first, "at_the_end_mib": last, "samples": curve.samples}
    phase.report(f"memory after warm-up {first:.0f} MiB, at the end {last:.0f} MiB, peak {curve.peak_mib:.0f} MiB")
    growth = last - first
    phase.require(growth < MOST_GROWTH_MIB, f"memory grows by {growth:.0f} MiB, required: under {MOST_GROWTH_MIB}")
