"""SIGTERM with answers under way, once and twice."""

import socket
import threading
import time
from typing import Any

from .bodies import long_request
from .caller import Caller
from .context import Phase
from .ledger import Ledger
from .service import Service
from .sizes import Sizes

ATTEMPT_SECONDS = 0.05
REFUSED_SECONDS, SECOND_SIGNAL_SECONDS = 1.0, 5.0


def measure(phase: Phase) -> dict[str, Any]:
    phase.figures |= {"once": _once(phase), "twice": _twice(phase)}
    return phase.figures


def _once(phase: Phase) -> dict[str, Any]:
    threads = _begin_answers(phase.service, phase.ledger, phase.sizes)
    started = time.monotonic()
    phase.service.terminate()
    attempts, waiting = _connect_until_the_end(phase.service, started)
    status = phase.service.wait()
    seconds = time.monotonic() - started
    for thread in threads:
        thread.join()
    refused_after = max((at for at, accepted in attempts if accepted), default=0.0)
    result = {
        "exit_status": status, "seconds": seconds, "refused_after_seconds": refused_after,
        "accepted": _count_answered(waiting), "attempts": attempts,
    }  # fmt: skip
    phase.report(
        f"SIGTERM: exit status {status} after {seconds:.1f} s, connections are refused after {refused_after:.2f} s, "
        f"those accepted before: {result['accepted']}, answers under way: {phase.ledger.counts()}"
    )
    phase.require(status == 0, f"the exit status after SIGTERM is {status}, required: 0")
    phase.require(
        refused_after < REFUSED_SECONDS,
        f"new connections are refused {refused_after:.1f} s after SIGTERM, required: {REFUSED_SECONDS:.0f} s",
    )
    return result


def _twice(phase: Phase) -> dict[str, Any]:
    """Callers of a service that is told to end now may be cut off, so their outcomes are not in the table."""
    ledger = Ledger()
    with Service(phase.folder / "second.log", phase.sizes.environment) as service:
        threads = _begin_answers(service, ledger, phase.sizes)
        service.terminate()
        time.sleep(0.5)
        started = time.monotonic()
        service.terminate()
        status = service.wait()
        seconds = time.monotonic() - started
        for thread in threads:
            thread.join()
    phase.report(f"SIGTERM twice: exit status {status}, {seconds:.1f} s after the second; {ledger.counts()}")
    phase.require(
        seconds < SECOND_SIGNAL_SECONDS,
        f"the service ends {seconds:.1f} s after a second SIGTERM, required: {SECOND_SIGNAL_SECONDS:.0f} s",
    )
    return {"exit_status": status, "seconds_after_the_second": seconds, "requests": ledger.as_json()}


def _begin_answers(service: Service, ledger: Ledger, sizes: Sizes) -> list[threading.Thread]:
    """Returns the threads of callers with long answers, half of them streams. All are admitted."""

    def send(stream: bool) -> None:
        Caller(service.port, ledger).send(long_request(stream, sizes.answer_tokens), busy=True)

    threads = [threading.Thread(target=send, args=(index % 2 == 0,)) for index in range(sizes.end_answers)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while _live(service) < sizes.end_answers and time.monotonic() < deadline:
        time.sleep(0.02)
    return threads


def _live(service: Service) -> float:
    metrics = service.metrics()
    return metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]


def _connect_until_the_end(service: Service, since: float) -> tuple[list[tuple[float, bool]], list[socket.socket]]:
    """Returns (seconds, whether the connection was accepted) of each attempt, and the accepted connections.

    A service that ends refuses all connections, so the attempts stop there.
    """
    attempts: list[tuple[float, bool]] = []
    accepted = []
    while not service.has_ended() and time.monotonic() - since < 60:
        try:
            sock = socket.create_connection(("127.0.0.1", service.port), timeout=1)
            accepted.append(sock)
            attempts.append((time.monotonic() - since, True))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        except OSError:
            attempts.append((time.monotonic() - since, False))
        time.sleep(ATTEMPT_SECONDS)
    return attempts, accepted


def _count_answered(connections: list[socket.socket]) -> dict[str, int]:
    """Returns how many connections got an answer, and how many were cut off without one."""
    counts = {"answered": 0, "cut off": 0}
    for sock in connections:
        try:
            answered = sock.recv(100).startswith(b"HTTP/")
        except OSError:
            answered = False
        counts["answered" if answered else "cut off"] += 1
        sock.close()
    return counts
