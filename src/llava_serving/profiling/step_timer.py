"""Divides the time of a step among its parts."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

OTHER = "other"


@dataclass(frozen=True)
class StepTimes:
    """The duration of a step and of its parts, in seconds. The parts do not overlap, and their sum is the step."""

    kind: str
    seconds: float
    parts: dict[str, float]


class StepTimer:
    """Measures steps, and the functions that they call.

    Each moment of a step belongs to one part: that of the innermost timed function that runs, or OTHER. A function that
    is called outside a step is not measured. The caller sets `kind` of a step before it ends, and a step holds `lock`.
    `synchronize` waits for the device before each reading of the clock.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self.steps: list[StepTimes] = []
        self.kind = ""
        self.lock = threading.Lock()
        self._clock = clock
        self._synchronize = synchronize
        self._running: list[str] = []  # the part of each timed function that runs, the innermost last
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._divided_until = 0.0

    def step(self, function: Callable[P, T]) -> Callable[P, T]:
        """Returns `function`, each call of which is a step."""

        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.lock:
                self._seconds.clear()
                self._running.append(OTHER)
                started = self._divided_until = self._now()
                try:
                    return function(*args, **kwargs)
                finally:
                    self._divide()
                    self._running.clear()
                    self.steps.append(StepTimes(self.kind, self._divided_until - started, dict(self._seconds)))

        return measured

    def part(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Returns `function`, whose time in a step is part `name`, except that of the timed functions it calls."""

        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            if not self._running:
                return function(*args, **kwargs)
            self._divide()
            self._running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._divide()
                self._running.pop()

        return measured

    def _divide(self) -> None:
        """Gives the time since the last call to the part that has run since then."""
        now = self._now()
        self._seconds[self._running[-1]] += now - self._divided_until
        self._divided_until = now

    def _now(self) -> float:
        self._synchronize()
        return self._clock()
