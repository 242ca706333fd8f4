"""A stream beside a caller with large pictures: the time between the events of the stream."""

import http.client
import itertools
import threading
import time
from typing import Any

from .bodies import long_request, score_body
from .caller import Caller, Request, judge
from .context import Phase
from .ledger import LOST
from .pictures import noise_picture
from .watchers import percentiles

# The longest time that one request may hold the interpreter, which is what the neighbour's p99 may grow by.
MOST_SECONDS = 0.020


def measure(phase: Phase) -> dict[str, Any]:
    request = Request(score_body(noise_picture(phase.sizes.noise_bytes), max_new_tokens=1), name="a noise picture")
    seconds = phase.sizes.neighbour_seconds
    without = _gaps(phase, seconds)
    end = threading.Event()
    other = threading.Thread(target=_send_pictures, args=(phase, request, end))
    other.start()
    during = _gaps(phase, seconds)
    end.set()
    other.join()
    phase.figures |= {"body_bytes": len(request.body)}
    phase.figures |= {"without": percentiles(without), "with": percentiles(during)}
    phase.figures |= {"gaps_without": without, "gaps_with": during}
    for name in ("without", "with"):
        p50, p99, longest = (phase.figures[name][key] * 1e3 for key in ("p50", "p99", "max"))
        phase.report(f"between tokens {name} the neighbour: p50 {p50:.1f}, p99 {p99:.1f}, max {longest:.1f} ms")
    growth = phase.figures["with"]["p99"] - phase.figures["without"]["p99"]
    phase.require(growth < MOST_SECONDS, f"a neighbour's pictures add {growth * 1e3:.0f} ms to p99, required: under 20")
    return phase.figures


def _send_pictures(phase: Phase, request: Request, end: threading.Event) -> None:
    caller = Caller(phase.service.port, phase.ledger)
    while not end.is_set():
        caller.send(request)


def _gaps(phase: Phase, seconds: float) -> list[float]:
    """Reads streams one after the other for `seconds`. Returns the seconds between the events of each stream."""
    gaps: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times = _stream(phase)
        gaps += [after - before for before, after in itertools.pairwise(times)]
    return gaps


def _stream(phase: Phase) -> list[float]:
    """Returns the time of each event of one stream."""
    request = long_request(stream=True, tokens=phase.sizes.answer_tokens)
    phase.ledger.offer()
    connection = http.client.HTTPConnection("127.0.0.1", phase.service.port, timeout=190)
    times, lines = [], []
    try:
        connection.request("POST", request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        while line := response.readline():
            lines.append(line)
            if line.startswith(b"data:"):
                times.append(time.monotonic())
        outcome, detail, expected = judge(request, response.status, b"".join(lines))
        phase.ledger.record(outcome, detail, not expected)
    except (OSError, http.client.HTTPException) as error:
        phase.ledger.record(LOST, type(error).__name__)
    connection.close()
    return times
