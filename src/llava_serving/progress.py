"""How far a long job is, at what rate, and how long it will take."""

import sys
import time
from typing import TextIO

WIDTH = 70


class Progress:
    """Tells on `out`: a terminal one line that changes, a log a line every `LOG_SECONDS`."""

    LOG_SECONDS = 10.0
    TERMINAL_SECONDS = 0.2

    def __init__(self, what: str, total: int, done: int = 0, out: TextIO = sys.stderr) -> None:
        self._what, self._total, self._done, self._out = what, total, done, out
        self._began_with, self._began = done, time.monotonic()
        self._changes = out.isatty()
        self._told = self._began

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if now - self._told >= (self.TERMINAL_SECONDS if self._changes else self.LOG_SECONDS):
            self._told = now
            self._tell(now, "\r" if self._changes else "")

    def clear(self) -> None:
        """Makes room for a line of something else."""
        if self._changes:
            self._out.write(f"\r{'':<{WIDTH}}\r")
            self._out.flush()

    def finish(self) -> None:
        if self._changes:
            self._tell(time.monotonic(), "\r")
            self._out.write("\n")

    def _tell(self, now: float, start: str) -> None:
        rate = (self._done - self._began_with) / max(now - self._began, 1e-6)
        left = (self._total - self._done) / rate if rate else 0.0
        line = (
            f"{self._what} {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, "
            f"{rate / 1e6:.0f} MB/s, {left:.0f} s left"
        )
        self._out.write(f"{start}{line:<{WIDTH}}{'' if start else chr(10)}")
        self._out.flush()
