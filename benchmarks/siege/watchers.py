"""Threads that ask all the time how the service is: the probe, and a caller with small requests."""

import http.client
import threading
import time
from types import TracebackType
from typing import Any

from .bodies import small_request
from .caller import Answer, Caller
from .ledger import Ledger

PROBE_PAUSE_SECONDS = 0.25
PROBE_TIMEOUT_SECONDS = 10.0
SMALL_PAUSE_SECONDS = 0.05


class Watcher:
    """Runs `ask` again and again in a thread while the `with` block runs, and at least once."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def ask(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.ask()
            if self._end.wait(self._pause):
                return


class Probe(Watcher):
    """GET / on a connection of its own, as an orchestrator asks. Keeps the seconds of each."""

    def __init__(self, port: int) -> None:
        super().__init__(PROBE_PAUSE_SECONDS)
        self._port = port
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def ask(self) -> None:
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PROBE_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/")
            status = connection.getresponse().status
            if status != 200:
                self.failures.append(str(status))
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(type(error).__name__)
        finally:
            connection.close()
        self.seconds.append(time.monotonic() - started)

    def as_json(self) -> dict[str, Any]:
        return {"worst_seconds": max(self.seconds), "failures": self.failures, "seconds": self.seconds}


class SmallCaller(Watcher):
    """A well-behaved caller: small requests, one after the other."""

    def __init__(self, port: int, ledger: Ledger, timeout: float = 30.0, busy: bool = False) -> None:
        super().__init__(SMALL_PAUSE_SECONDS)
        self._caller = Caller(port, ledger, timeout=timeout)
        self._busy = busy
        self.answers: list[Answer] = []

    def ask(self) -> None:
        self.answers.append(self._caller.send(small_request(), self._busy))

    def as_json(self) -> dict[str, Any]:
        seconds = [answer.seconds for answer in self.answers]
        statuses = sorted({answer.status for answer in self.answers})
        return percentiles(seconds) | {"statuses": statuses, "seconds": seconds}


def percentiles(values: list[float]) -> dict[str, float]:
    """Returns the median, the 99th percentile (nearest rank), the largest value, and how many there are."""
    ordered = sorted(values)
    return {
        "p50": ordered[len(ordered) // 2], "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max": ordered[-1], "count": len(ordered),
    }  # fmt: skip
