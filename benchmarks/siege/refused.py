"""Pictures and bodies that are refused, one after the other, and the memory that each takes."""

import http.client
import time
from collections.abc import Callable, Iterator
from typing import Any

from .bodies import score_body
from .caller import JSON_HEADERS, Request, judge
from .context import Phase
from .ledger import LOST
from .pictures import cut_picture, tall_picture
from .processes import MemoryCurve, memory_mib, over_idle

MOST_MIB = 16
MIB = 1024 * 1024
CHUNK = b" " * 65536
TIMEOUT_SECONDS = 120.0
Body = bytes | Iterator[bytes]
BODIES: dict[str, Callable[[int], bytes]] = {
    "nested lists": lambda size: b"[" * size,
    "a list of numbers": lambda size: b'{"input_data":[1' + b",1" * (size // 2) + b"]}",
    "a list of short strings": lambda size: b'{"input_data":["a"' + b',"a"' * (size // 4) + b"]}",
}


REFUSED = frozenset({400, 413})


def measure(phase: Phase) -> dict[str, Any]:
    """Sends what is refused. It may take 16 MiB, beside the bytes of a body that is read before it can be refused.

    A tenth of each bad body comes first. If this misses the requirement, the whole is not sent: it could take all
    memory of the machine.
    """
    cases = phase.figures["cases"] = {}
    for name, (make, status) in _large_cases(phase).items():
        cases[name] = _measure_case(phase, name, make, frozenset({status}))
    for name, make_bytes in BODIES.items():
        for size in (phase.sizes.bad_body_bytes // 10, phase.sizes.bad_body_bytes):
            sized = f"{name}, {size / MIB:.2g} MiB"
            cases[sized] = _measure_case(phase, sized, lambda: _whole(make_bytes(size)), REFUSED)  # noqa: B023
            if cases[sized]["memory"]["peak_over_idle_mib"] >= cases[sized]["most_mib"]:
                break
    return phase.figures


def _large_cases(phase: Phase) -> dict[str, tuple[Callable[[], tuple[Body, int]], int]]:
    """Returns by name a function that makes the body and its number of bytes, 0 for chunks, and the status."""
    sizes, limit = phase.sizes, phase.service.settings.max_body_bytes
    return {
        "a picture of one column": (lambda: _whole(score_body(tall_picture(sizes.tall_pixels))), 413),
        "a picture without its pixels": (lambda: _whole(score_body(cut_picture(sizes.picture_side))), 400),
        "a body over the limit": (lambda: (_spaces(limit + 1), limit + 1), 413),
        "a chunked body over the limit": (lambda: (_spaces(limit + 1), 0), 413),
    }


def _measure_case(
    phase: Phase, name: str, make: Callable[[], tuple[Body, int]], statuses: frozenset[int]
) -> dict[str, Any]:
    body, length = make()
    limit = phase.service.settings.max_body_bytes
    most = MOST_MIB + (limit if not length else length if length <= limit else 0) / MIB
    idle = phase.idle_mib()
    with MemoryCurve(phase.service.pid) as curve:
        result = _send(phase, name, body, length, statuses)
        time.sleep(0.2)
    time.sleep(phase.sizes.rest_seconds / 5)
    memory = over_idle(idle, curve, memory_mib(phase.service.pid))
    peak = memory["peak_over_idle_mib"]
    phase.require(result["status"] in statuses, f"{name} gets {result['status']}, required: {sorted(statuses)}")
    phase.require(peak < most, f"{name} takes {peak:.0f} MiB over idle, required: under {most:.0f}")
    phase.report(
        f"{name}: {result['status']} in {result['seconds']:.2f} s, {peak:.0f} MiB over idle at the peak, "
        f"{memory['rest_over_idle_mib']:.0f} after"
    )
    return result | {"body_bytes": length, "most_mib": most, "memory": memory}


def _send(phase: Phase, name: str, body: Body, length: int, statuses: frozenset[int]) -> dict[str, Any]:
    """Sends a body without a copy of it, and reads the answer even if the server does not read the whole body."""
    phase.ledger.offer()
    request = Request(b"", expected=statuses, name=name)
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", phase.service.port, timeout=TIMEOUT_SECONDS)
    headers = JSON_HEADERS | ({"Content-Length": str(length)} if length else {"Transfer-Encoding": "chunked"})
    sent = "all"
    try:
        try:
            connection.request("POST", "/score", body, headers, encode_chunked=not length)
        except (BrokenPipeError, ConnectionResetError) as error:
            sent = type(error).__name__
            if connection.sock is None:
                raise
        response = http.client.HTTPResponse(connection.sock)
        response.begin()
        answer = response.read()
        outcome, detail, expected = judge(request, response.status, answer)
        phase.ledger.record(outcome, detail, not expected)
        result: dict[str, Any] = {"status": response.status, "message": answer[:300].decode("utf-8", "replace")}
    except (OSError, http.client.HTTPException) as error:
        phase.ledger.record(LOST, f"{type(error).__name__} for {name}")
        result = {"status": 0, "message": type(error).__name__}
    connection.close()
    return result | {"sent": sent, "seconds": time.monotonic() - started}


def _whole(body: bytes) -> tuple[bytes, int]:
    return body, len(body)


def _spaces(size: int) -> Iterator[bytes]:
    for _ in range(size // len(CHUNK)):
        yield CHUNK
    yield CHUNK[: size % len(CHUNK)]
