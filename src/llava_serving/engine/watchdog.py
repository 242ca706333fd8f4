"""Notices a step that does not end. The engine's own thread cannot: it waits for that step."""

import math
import threading
import time
from collections.abc import Callable

# The watchdog looks this often, or more often where the limit is short.
MAX_INTERVAL_SECONDS = 1.0


class Watchdog:
    """Calls `on_stall` once, on a thread of its own, if a step takes more than `limit_seconds`."""

    def __init__(self, limit_seconds: float, on_stall: Callable[[], None]) -> None:
        self._limit_seconds = limit_seconds
        self._on_stall = on_stall
        self._step_began = math.inf
        self._stopped = threading.Event()

    def start(self) -> None:
        if not math.isinf(self._limit_seconds):
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def begin_step(self) -> None:
        """Starts the clock, unless it runs already."""
        self._step_began = min(self._step_began, time.monotonic())

    def end_step(self, next_in_flight: bool) -> None:
        """Stops the clock, or starts it again for the step that the device computes next."""
        self._step_began = time.monotonic() if next_in_flight else math.inf

    def _watch(self) -> None:
        interval = min(MAX_INTERVAL_SECONDS, self._limit_seconds / 4)
        while not self._stopped.wait(interval):
            if time.monotonic() - self._step_began > self._limit_seconds:
                self._on_stall()
                return
