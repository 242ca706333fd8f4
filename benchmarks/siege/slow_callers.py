"""Connections that say nothing, half a head, half a body, or a byte a second, all at once."""

import resource
import time
from typing import Any

from .context import Phase
from .slow_sockets import SlowCaller, SlowSockets

HEAD = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
RECOVERY_SECONDS = 60.0


def measure(phase: Phase) -> dict[str, Any]:
    sizes = phase.sizes
    _allow_many_descriptors()
    sockets = SlowSockets(phase.service.port, _callers(sizes.slow_connections, sizes.drippers))
    with phase.probe() as probe, phase.small_caller() as small:
        sockets.hold(sizes.slow_seconds, lambda: phase.report("all connections are begun"))
        closed = time.monotonic()
    phase.require_probe(probe)
    phase.figures |= {"connections": sockets.outcomes(), "ended_after_seconds": sockets.seconds()}
    phase.figures["well_behaved"] = small.as_json()
    statuses = small.as_json()["statuses"]
    phase.require(statuses == [200], f"well-behaved requests get {statuses} (0: no answer in 30 s), required: 200")
    recovery = _seconds_until_probe_answers(phase, closed)
    phase.figures["recovery_seconds"] = recovery
    phase.require(recovery < 10, f"the probe answers {recovery:.0f} s after the slow callers left, required: 10 s")
    phase.report(f"the server ended: {phase.figures['connections']}; after {phase.figures['ended_after_seconds']}")
    phase.report(f"worst probe {max(probe.seconds):.2f} s, well-behaved p99 {small.as_json()['p99']:.2f} s, {statuses}")
    return phase.figures


def _callers(connections: int, drippers: int) -> list[SlowCaller]:
    body = b'{"input_data": ["' + b"a" * 1000
    half_body = HEAD + b"Content-Length: 2000\r\n\r\n" + body
    slow = [("half a head", HEAD), ("nothing", b""), ("half a body", half_body)]
    callers = [SlowCaller(kind, first) for _ in range(connections) for kind, first in slow]
    for _ in range(drippers):
        callers.append(SlowCaller("a byte of the head a second", HEAD, b"x-slow: " + b"a" * 1000))
        callers.append(SlowCaller("a byte of the body a second", half_body, b"a" * 990))
    return callers


def _allow_many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _seconds_until_probe_answers(phase: Phase, since: float) -> float:
    """Returns the seconds from `since` until a probe is answered, at most RECOVERY_SECONDS and one probe more."""
    probe = phase.probe()
    while time.monotonic() - since < RECOVERY_SECONDS:
        probe.failures.clear()
        probe.ask()
        if not probe.failures:
            break
    return time.monotonic() - since
