"""The progress of a long job, in a log and on a terminal."""

import io
import sys

import pytest

from llava_serving import progress
from llava_serving.progress import Progress


def test_a_log_gets_whole_lines_every_interval_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("merged", "B", total=26_000_000_000, done=2_000_000_000, log=lines.append) as merged:
        for now[0] in (5.0, 10.0, 15.0, 20.0):
            merged.advance(1_000_000_000)
    assert [line.split(" [")[0] for line in lines] == [
        "merged:  15% 4.00G/26.0G",
        "merged:  23% 6.00G/26.0G",
        "merged:  23% 6.00G/26.0G",
    ]
    assert "[00:10<01:50, 200MB/s]" in lines[0], "the 2 GB that were done before do not count for the rate"


def test_a_log_line_ends_with_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with Progress("batch", " rows", log=lines.append) as rows:
        rows.advance(4, "3 of 3 files read, 2 errors")
    (line,) = lines
    assert line.startswith("batch: 4 rows [")
    assert line.endswith(", 3 of 3 files read, 2 errors]")


def test_a_terminal_gets_a_bar_and_no_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, lines = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("hashed", "B", total=100, log=lines.append) as hashed:
        hashed.advance(100)
    assert lines == []
    assert "hashed: 100%" in terminal.getvalue().split("\r")[-1]
