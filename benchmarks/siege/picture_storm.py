"""Many callers at once, each with a large legal picture, and beside them a caller with small requests."""

import threading
import time
from typing import Any

from .bodies import score_body
from .caller import Caller, Request
from .context import Phase
from .pictures import legal_pictures
from .processes import MemoryCurve, memory_mib, over_idle

PEAK_MIB, REST_MIB = 900, 250
SMALL_P99_SECONDS = 1.0


def measure(phase: Phase) -> dict[str, Any]:
    sizes = phase.sizes
    pictures = legal_pictures(sizes.picture_callers, sizes.picture_side)
    requests = [Request(score_body(picture, max_new_tokens=4), name=kind) for kind, picture in pictures]
    phase.figures["encoded_bytes"] = [(kind, len(picture) * 3 // 4) for kind, picture in pictures]
    phase.report(f"made {len(pictures)} pictures of {sizes.picture_side} x {sizes.picture_side} pixels")
    del pictures
    with phase.small_caller() as quiet:
        time.sleep(sizes.quiet_seconds)
    idle = phase.idle_mib()
    with MemoryCurve(phase.service.pid) as curve, phase.probe() as probe, phase.small_caller() as stormy:
        rounds = [_round(phase, requests) for _ in range(sizes.picture_rounds)]
    time.sleep(sizes.rest_seconds)
    memory = over_idle(idle, curve, memory_mib(phase.service.pid))
    phase.figures |= {
        "rounds": rounds,
        "memory": memory,
        "small_without": quiet.as_json(),
        "small_with": stormy.as_json(),
    }
    phase.require_probe(probe)
    _require(phase)
    return phase.figures


def _round(phase: Phase, requests: list[Request]) -> dict[str, Any]:
    """Sends all requests at once, and returns the seconds of the round and each status."""
    started = time.monotonic()
    statuses = [0] * len(requests)

    def send(index: int) -> None:
        statuses[index] = Caller(phase.service.port, phase.ledger).send(requests[index]).status

    threads = [threading.Thread(target=send, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    phase.report(f"a round of {len(requests)} pictures takes {seconds:.1f} s, statuses {sorted(set(statuses))}")
    return {"seconds": seconds, "statuses": statuses}


def _require(phase: Phase) -> None:
    figures, memory = phase.figures, phase.figures["memory"]
    statuses = {status for one in figures["rounds"] for status in one["statuses"]}
    peak, rest = memory["peak_over_idle_mib"], memory["rest_over_idle_mib"]
    without, during = figures["small_without"], figures["small_with"]
    phase.require(statuses == {200}, f"legal pictures get {sorted(statuses)}, required: 200")
    phase.require(peak < PEAK_MIB, f"pictures take {peak:.0f} MiB over idle at the peak, required: under {PEAK_MIB}")
    phase.require(rest < REST_MIB, f"pictures leave {rest:.0f} MiB over idle, required: under {REST_MIB}")
    phase.require(
        during["statuses"] == [200] and during["p99"] < SMALL_P99_SECONDS,
        f"small requests beside pictures: p99 {during['p99']:.2f} s (without: {without['p99']:.2f} s), statuses "
        f"{during['statuses']}, required: under {SMALL_P99_SECONDS:.0f} s",
    )
    phase.report(f"memory over idle ({memory['idle_mib']:.0f} MiB): peak {peak:.0f} MiB, after rest {rest:.0f} MiB")
    phase.report(
        f"small requests without p50/p99 {without['p50']:.3f}/{without['p99']:.3f} s, with {during['p50']:.3f}/"
        f"{during['p99']:.3f}/max {during['max']:.3f} s"
    )
