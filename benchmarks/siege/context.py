"""What the phases share: the service, the sizes, and a place for requests, figures and requirements."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .ledger import Ledger
from .processes import memory_mib
from .service import Service
from .sizes import Sizes
from .watchers import Probe, SmallCaller

STARTED = time.monotonic()
STEADY_MIB = 1.0


@dataclass
class Phase:
    """One phase while it runs: its requests, its figures, and the requirements that it misses."""

    service: Service
    sizes: Sizes
    folder: Path
    ledger: Ledger = field(default_factory=Ledger)
    figures: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def require(self, holds: bool, miss: str) -> None:
        """Records `miss`, which says what happened and what is required, unless the requirement holds."""
        if not holds:
            self.missed.append(miss)

    def require_probe(self, probe: Probe) -> None:
        """Requires an answer within a second, and reports the probe."""
        self.figures["probe"] = probe.as_json()
        worst = max(probe.seconds)
        self.require(worst < 1 and not probe.failures, f"the worst probe takes {worst:.2f} s, required: under 1 s")

    def probe(self) -> Probe:
        return Probe(self.service.port)

    def small_caller(self, busy: bool = False) -> SmallCaller:
        return SmallCaller(self.service.port, self.ledger, busy=busy)

    def idle_mib(self) -> float:
        """Returns the memory of the idle service, as soon as it is steady, or after five looks."""
        memory = memory_mib(self.service.pid)
        for _ in range(5):
            time.sleep(self.sizes.settle_seconds)
            before, memory = memory, memory_mib(self.service.pid)
            if abs(memory - before) < STEADY_MIB:
                break
        return memory

    def report(self, message: str) -> None:
        print(f"[{time.monotonic() - STARTED:7.1f} s] {message}", flush=True)
