"""Counts the requests of a phase. Every request has exactly one outcome."""

import threading
from collections import Counter
from typing import Any

ANSWERED, REFUSED, TOLD, LEFT, LOST = "answered", "refused", "told of a fault", "left", "lost"
OUTCOMES = (ANSWERED, REFUSED, TOLD, LEFT, LOST)


class Ledger:
    """Any thread may record."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offered = 0
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._unexpected: Counter[str] = Counter()

    def offer(self) -> None:
        with self._lock:
            self._offered += 1

    def record(self, outcome: str, detail: str, unexpected: bool = False) -> None:
        """`detail` is a status, or what happened. `unexpected`: the contract says otherwise about this request."""
        with self._lock:
            self._outcomes[outcome, detail] += 1
            if unexpected:
                self._unexpected[f"{outcome}: {detail}"] += 1

    def counts(self) -> dict[str, int]:
        """Returns the number of requests offered, and of each outcome."""
        by_outcome = {
            outcome: sum(count for (name, _), count in self._outcomes.items() if name == outcome)
            for outcome in OUTCOMES
        }
        return {"offered": self._offered} | by_outcome

    def as_json(self) -> dict[str, Any]:
        details = {f"{outcome}: {detail}": count for (outcome, detail), count in sorted(self._outcomes.items())}
        return self.counts() | {"details": details, "unexpected": dict(self._unexpected)}
