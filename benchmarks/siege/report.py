"""The table at the end of a siege, and the heading of its JSON file."""

import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from servers import machine

from .ledger import OUTCOMES

COLUMNS = ("offered", *OUTCOMES)


def totals(phases: dict[str, Any]) -> dict[str, int]:
    """Returns the number of requests offered, and of each outcome, in all phases."""
    return {column: sum(phase["requests"][column] for phase in phases.values()) for column in COLUMNS}


def worst(phases: dict[str, Any], path: tuple[str, str]) -> float | None:
    """Returns the largest figure of all phases under two keys, or None if no phase has it."""
    values = [phase["figures"][path[0]][path[1]] for phase in phases.values() if path[0] in phase["figures"]]
    return max(values, default=None)


def worst_small_request(phases: dict[str, Any]) -> float | None:
    """Returns the seconds of the slowest small request beside slow callers, pictures or a full load."""
    values = [worst(phases, (name, "max")) for name in ("well_behaved", "small_with", "small")]
    return max((value for value in values if value is not None), default=None)


def print_table(content: dict[str, Any]) -> None:
    print("\n" + " ".join([f"{'phase':10}", *(f"{column:>15}" for column in COLUMNS)]))
    rows = {name: phase["requests"] for name, phase in content["phases"].items()} | {"total": content["total"]}
    for name, counts in rows.items():
        print(" ".join([f"{name:10}", *(f"{counts[column]:15,}" for column in COLUMNS)]))
    print()
    before, after = content["at_the_start"], content["at_the_end"]
    for name in before:
        print(f"{name:12} {before[name]:10,.0f} at the start {after[name]:10,.0f} at the end")
    print(f"left in use: {content['left_in_use']}, tracebacks in the log: {content['tracebacks']}")
    print(f"worst probe: {_seconds(content['worst_probe_seconds'])}")
    print(f"worst small request: {_seconds(content['worst_small_seconds'])}")
    print("\n".join(["", "missed:", *content["missed"]]) if content["missed"] else "\nevery requirement is met")


def heading(server_command: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns when, where and with what a siege runs."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "command": shlex.join(sys.argv),
        "server": [word.rpartition("/")[2] for word in server_command], "settings": settings,
    }  # fmt: skip


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} s"
