"""Which requests the engine takes: as many sequences as its limit allows, and none once it shuts down or has failed."""

import math
import threading
import time
from collections import deque
from types import TracebackType

from ..errors import Overloaded, Unavailable
from .wait_forecast import WaitForecast

# Clients of a refusing instance retry after this time. Other instances, if there are any, answer at once.
RESTART_SECONDS = 5


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
        self.forecast = WaitForecast()  # the engine replaces it several times a second

    def check(self, num_seqs: int) -> None:
        """Raises Overloaded or Unavailable if `num_seqs` more sequences are not admitted now."""
        with self.lock:
            self.check_refusal()
            num_excess = self._num_excess(num_seqs)
            if num_excess > 0:
                seconds = self.forecast.seconds_until(num_excess, self._num_live, time.monotonic())
                raise Overloaded(
                    "overloaded",
                    f"{self._num_live} of at most {self._max_live_seqs} sequences are running or waiting; {num_seqs} "
                    "more do not fit now",
                    retry_after=max(1, math.ceil(seconds)),
                )

    def check_refusal(self) -> None:
        """Raises Unavailable if nothing is admitted any more."""
        if self._refusal is not None:
            raise Unavailable(*self._refusal, retry_after=RESTART_SECONDS)

    def reserve(self, num_seqs: int, wait: bool = False) -> "Places":
        """Counts `num_seqs` sequences as live before they exist. Raises as `check` does.

        With `wait` it waits for capacity, first come, first served, and raises Unavailable only.
        """
        with self.lock:
            if wait:
                self.wait_for_capacity(num_seqs)
            self.admit(num_seqs)
            return Places(self, num_seqs)

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
            self._num_live += num_seqs

    def release(self, num_seqs: int = 1) -> None:
        """Records that sequences have finished."""
        with self.lock:
            self._num_live -= num_seqs
            self._notify_next()

    def announce_refusal(self, code: str, message: str) -> None:
        """Admits nothing any more, and takes no lock: a signal handler may run while its own thread holds the lock.

        The first reason stays. Threads that wait for capacity learn it from `refuse`.
        """
        self._refusal = self._refusal or (code, message)

    def refuse(self, code: str, message: str) -> None:
        """Admits nothing any more, and wakes the threads that wait for capacity. The first reason stays."""
        self.announce_refusal(code, message)
        with self.lock:
            for turn in self._waiting:
                turn.notify()

    def _num_excess(self, num_seqs: int) -> int:
        """Returns how many live sequences must finish before `num_seqs` more fit."""
        return self._num_live + num_seqs - self._max_live_seqs

    def _notify_next(self) -> None:
        if self._waiting:
            self._waiting[0].notify()


class Places:
    """Room for sequences that do not exist yet. Leaving the block gives it back, unless the engine has taken it."""

    def __init__(self, admission: Admission, num_seqs: int) -> None:
        self._admission = admission
        self._num_seqs = num_seqs

    def grow_to(self, num_seqs: int) -> None:
        """Holds room for `num_seqs` sequences in all. Raises as Admission.check does."""
        if num_seqs > self._num_seqs:
            self._admission.admit(num_seqs - self._num_seqs)
            self._num_seqs = num_seqs

    def take(self) -> None:
        """Leaves the room to the sequences, which are released one by one when they finish."""
        self._num_seqs = 0

    def __enter__(self) -> "Places":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._num_seqs:
            self._admission.release(self._num_seqs)
            self._num_seqs = 0
