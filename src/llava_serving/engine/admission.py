"""Which requests the engine takes: as many sequences as its limit allows, and none once it shuts down or has failed."""

import math
import threading
import time
from collections import deque

from ..errors import Overloaded, Unavailable

# Clients of a refusing instance retry after this time. Other instances, if there are any, answer at once.
RESTART_SECONDS = 5
# The pace of the engine is measured over this many finished sequences.
PACE_WINDOW = 64


class Admission:
    """Counts the live sequences, which run or wait. Every method may be called from any thread."""

    def __init__(self, max_live_seqs: int) -> None:
        # Engine.submit holds the lock while it admits and queues a request, so that `refuse` happens before both or
        # after both.
        self.lock = threading.RLock()
        self._waiting: deque[threading.Condition] = deque()  # one for each thread that waits for capacity, in order
        self._max_live_seqs = max_live_seqs
        self._num_live = 0
        self._refusal: tuple[str, str] | None = None  # error code and message
        # time.monotonic() when the engine became busy, and when each of the last sequences finished.
        self._finish_times: deque[float] = deque([0.0], maxlen=PACE_WINDOW)

    def check(self, num_seqs: int) -> None:
        """Raises Overloaded or Unavailable if `num_seqs` more sequences are not admitted now."""
        with self.lock:
            if self._refusal is not None:
                raise Unavailable(*self._refusal, retry_after=RESTART_SECONDS)
            num_excess = self._num_excess(num_seqs)
            if num_excess > 0:
                raise Overloaded(
                    "overloaded",
                    f"{self._num_live} of at most {self._max_live_seqs} sequences are running or waiting; {num_seqs} "
                    "more do not fit now",
                    retry_after=self._seconds_until_finished(num_excess),
                )

    def wait_for_capacity(self, num_seqs: int) -> None:
        """Waits until `num_seqs` more sequences fit and no other thread has waited longer, or until the engine refuses.

        The caller holds `lock`, which is free while it waits.
        """
        if not self._waiting and self._num_excess(num_seqs) <= 0:
            return
        turn = threading.Condition(self.lock)
        self._waiting.append(turn)
        try:
            turn.wait_for(
                lambda: self._refusal is not None or (self._waiting[0] is turn and self._num_excess(num_seqs) <= 0)
            )
        finally:
            self._waiting.remove(turn)
            self._notify_next()

    def admit(self, num_seqs: int) -> None:
        """Counts `num_seqs` sequences as live. Raises as `check` does."""
        with self.lock:
            self.check(num_seqs)
            if self._num_live == 0:
                self._finish_times = deque([time.monotonic()], PACE_WINDOW)
            self._num_live += num_seqs

    def release(self) -> None:
        """Records that one sequence has finished."""
        with self.lock:
            self._num_live -= 1
            self._finish_times.append(time.monotonic())
            self._notify_next()

    def refuse(self, code: str, message: str) -> None:
        """Admits nothing any more. The first reason stays."""
        with self.lock:
            self._refusal = self._refusal or (code, message)
            for turn in self._waiting:
                turn.notify()

    def _num_excess(self, num_seqs: int) -> int:
        """Returns how many live sequences must finish before `num_seqs` more fit."""
        return self._num_live + num_seqs - self._max_live_seqs

    def _notify_next(self) -> None:
        if self._waiting:
            self._waiting[0].notify()

    def _seconds_until_finished(self, count: int) -> int:
        """Estimates when `count` of the live sequences will have finished, at the pace of the last ones."""
        seconds_each = (time.monotonic() - self._finish_times[0]) / max(1, len(self._finish_times) - 1)
        return max(1, math.ceil(count * seconds_each))
