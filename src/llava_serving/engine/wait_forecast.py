"""When live sequences will have finished: the basis of `Retry-After`."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .sequence import Sequence

# A forecast costs time of the engine's thread, so it is made this often at most.
FORECAST_INTERVAL_SECONDS = 0.1
# Seconds by the size of a step: the number of bits of its number of sequences. Larger steps take longer.
StepSeconds = Mapping[int, float]
# The weight of the newest value in a moving average.
NEWEST = 0.1


@dataclass(frozen=True)
class WaitForecast:
    """The expected number of steps of each live sequence at the time `made_at`, in seconds of time.monotonic.

    `waiting` sequences start in order, whenever one of `max_running` has finished.
    """

    made_at: float = 0.0
    step_seconds: StepSeconds = field(default_factory=dict)
    max_running: int = 1
    running: tuple[float, ...] = ()
    waiting: tuple[float, ...] = ()
    typical: float = 0.0  # steps of a whole answer

    def seconds_until(self, count: int, num_live: int, now: float) -> float:
        """Returns the seconds until `count` of `num_live` sequences will have finished, 0 if it is overdue.

        Sequences that were admitted after the forecast was made count as typical ones.
        """
        num_unknown = max(0, num_live - len(self.running) - len(self.waiting))
        finishes = sorted(self._finishes((*self.waiting, *[self.typical] * num_unknown)))
        if not finishes:
            return 0.0
        steps = finishes[min(count, len(finishes)) - 1]
        return max(0.0, self.made_at + steps * self._seconds_per_step(min(num_live, self.max_running)) - now)

    def _seconds_per_step(self, num_running: int) -> float:
        """Returns the duration of a step of about so many sequences, or of the nearest number that is known."""
        size = num_running.bit_length()
        known = min(self.step_seconds, key=lambda other: abs(other - size), default=None)
        return 0.0 if known is None else self.step_seconds[known]

    def _finishes(self, waiting: Iterable[float]) -> Iterable[float]:
        """Yields after how many steps each sequence finishes."""
        running = list(self.running)
        heapq.heapify(running)
        for steps in waiting:
            start = 0.0
            if len(running) >= self.max_running:
                start = heapq.heappop(running)
                yield start
            heapq.heappush(running, start + steps)
        yield from running


@dataclass
class Forecaster:
    """Learns the duration of a step and the length of answers, and makes a WaitForecast from them.

    The engine's thread owns it.
    """

    max_running: int
    max_step_tokens: int
    _step_seconds: dict[int, float] = field(default_factory=dict)
    _last_step: float | None = None
    # Generated tokens as a share of max_new_tokens, of answers that may end earlier.
    _answer_share: float = 1.0
    _typical: float = 0.0
    _next: float = 0.0

    def step_ended(self, num_running: int, now: float) -> None:
        """Records the end of a step. `pause` separates steps between which the engine had no work."""
        if self._last_step is not None:
            seconds, size = now - self._last_step, num_running.bit_length()
            average = self._step_seconds.get(size, seconds)
            self._step_seconds[size] = average + (seconds - average) * NEWEST
        self._last_step = now

    def pause(self) -> None:
        self._last_step = None

    def answer_ended(self, seq: Sequence) -> None:
        """Records how much of its `max_new_tokens` a finished sequence has used."""
        if not seq.params.ignore_eos:
            share = seq.num_generated / seq.params.max_new_tokens
            self._answer_share += (share - self._answer_share) * NEWEST

    def submitted(self, seq: Sequence) -> None:
        """Records the length of an answer that is asked for."""
        steps = self._expected_steps(seq)
        self._typical += (steps - self._typical) * (NEWEST if self._typical else 1.0)

    def is_due(self, now: float) -> bool:
        return now >= self._next

    def forecast(self, running: Iterable[Sequence], waiting: Iterable[Sequence], now: float) -> WaitForecast:
        """Returns the forecast for the live sequences, `waiting` in the order in which they start."""
        self._next = now + FORECAST_INTERVAL_SECONDS
        return WaitForecast(
            made_at=now,
            step_seconds=dict(self._step_seconds),
            max_running=self.max_running,
            running=tuple(self._expected_steps(seq) for seq in running),
            waiting=tuple(self._expected_steps(seq) for seq in waiting),
            typical=self._typical,
        )

    def _expected_steps(self, seq: Sequence) -> float:
        share = 1.0 if seq.params.ignore_eos else self._answer_share
        answer = max(1.0, share * seq.params.max_new_tokens - seq.num_generated)
        return answer + seq.num_uncomputed // self.max_step_tokens
