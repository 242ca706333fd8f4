"""Shows how far a long job is, how fast it goes and how long it will take."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Self

from tqdm import tqdm

LOG_SECONDS = 10.0


def print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Shows a bar if stderr is a terminal. Otherwise logs a line every `LOG_SECONDS` and one at the end.

    A bar redraws itself with carriage returns, which turn the log of a job into one unreadable line.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        log: Callable[[str], None] = print_to_stderr,
    ) -> None:
        """`unit` "B" is bytes, shown in multiples such as 4.00G. `total` is None if it is not known.

        `done` units are done before the job starts. The rate leaves them out.
        """
        scale = unit == "B"
        # `disable=None` disables the bar if stderr is not a terminal.
        self._bar = tqdm(
            desc=description, unit=unit, total=total, initial=done, unit_scale=scale, dynamic_ncols=True, disable=None
        )
        self._has_bar = not self._bar.disable
        self._line = partial(
            tqdm.format_meter, total=total, prefix=description, unit=unit, unit_scale=scale, initial=done, ncols=0
        )
        self._log = log
        self._count, self._note = done, ""
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if not self._has_bar:
            self._log_line()

    def advance(self, count: int, note: str = "") -> None:
        """Adds `count` units. The `note` stands after the figures."""
        self._count += count
        self._note = note
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if not self._has_bar and time.monotonic() - self._logged >= LOG_SECONDS:
            self._log_line()

    def clear(self) -> None:
        """Removes the bar from the terminal, so that other output can be printed. The next update draws it again."""
        self._bar.clear()

    def _log_line(self) -> None:
        self._logged = time.monotonic()
        self._log(self._line(self._count, elapsed=self._logged - self._started, postfix=self._note))
