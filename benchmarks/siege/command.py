"""Starts the service, runs the requested phases one after the other, and reports."""

import argparse
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from json_file import write_json

from . import ending, full_queue, neighbour, picture_storm, refused, report, slow_callers, soak
from .bodies import good_request, small_request
from .caller import Caller
from .context import Phase
from .ledger import Ledger
from .processes import usage
from .service import Service
from .sizes import Sizes, full, short

# What is refused comes before the pictures, whose memory would hide it. The end ends the service.
PHASES: dict[str, Callable[[Phase], dict[str, Any]]] = {
    "slow": slow_callers.measure, "refused": refused.measure, "pictures": picture_storm.measure,
    "queue": full_queue.measure, "neighbour": neighbour.measure, "soak": soak.measure, "end": ending.measure,
}  # fmt: skip
IDLE_SECONDS = 60.0
SPARE_DESCRIPTORS = 32


def main(description: str | None) -> int:
    """Returns the exit status: 1 if a requirement is missed."""
    arguments = _arguments(description)
    sizes = short() if arguments.short else full(arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        content = _besiege(sizes, arguments.phases, Path(folder))
    if arguments.output:
        write_json(arguments.output, content)
    report.print_table(content)
    return 1 if content["missed"] else 0


def _besiege(sizes: Sizes, names: list[str], folder: Path) -> dict[str, Any]:
    phases: dict[str, Any] = {}
    started = time.monotonic()
    with Service(folder / "log", sizes.environment) as service:
        _warm_up(service)
        content = report.heading(service.command, service.settings.model_dump(mode="json"))
        content["at_the_start"] = usage(service.pid)
        for name in names:
            if name != "end":
                phases[name] = _run(name, Phase(service, sizes, folder))
        content["left_in_use"] = service.wait_until_idle(IDLE_SECONDS)
        time.sleep(1)
        content["at_the_end"] = usage(service.pid)
        if "end" in names:
            phases["end"] = _run("end", Phase(service, sizes, folder))
        content["tracebacks"] = service.tracebacks
    content |= {"seconds": time.monotonic() - started, "phases": phases, "total": report.totals(phases)}
    content["worst_probe_seconds"] = report.worst(phases, ("probe", "worst_seconds"))
    content["worst_small_seconds"] = report.worst_small_request(phases)
    return content | {"missed": _missed(content)}


def _run(name: str, phase: Phase) -> dict[str, Any]:
    """Returns the phase's requests, figures and missed requirements. The next phases run even if this one fails."""
    phase.report(f"--- {name}")
    started = time.monotonic()
    try:
        PHASES[name](phase)
    except Exception:
        phase.require(False, f"the phase fails:\n{traceback.format_exc()}")
    requests = phase.ledger.as_json()
    phase.require(requests["lost"] == 0, f"{requests['lost']} requests are lost: {requests['details']}")
    phase.require(not requests["unexpected"], f"against the contract: {requests['unexpected']}")
    outcomes = sum(requests[outcome] for outcome in report.OUTCOMES)
    phase.require(requests["offered"] == outcomes, f"{requests['offered']} requests have {outcomes} outcomes")
    seconds = time.monotonic() - started
    return {"seconds": seconds, "requests": requests, "figures": phase.figures, "missed": phase.missed}


def _missed(content: dict[str, Any]) -> list[str]:
    missed = [f"{name}: {miss}" for name, phase in content["phases"].items() for miss in phase["missed"]]
    missed += [f"at the end: {name} is {value}, required: 0" for name, value in content["left_in_use"].items() if value]
    before, after = content["at_the_start"]["descriptors"], content["at_the_end"]["descriptors"]
    if after > before + SPARE_DESCRIPTORS:
        missed.append(f"at the end: {after} descriptors are open, and {before} were at the start")
    if content["tracebacks"]:
        missed.append(f"at the end: the log has {content['tracebacks']} tracebacks")
    return missed


def _warm_up(service: Service) -> None:
    """Sends a few requests, so that memory and threads of a service that has just started are not counted as growth."""
    caller = Caller(service.port, Ledger())
    for seed in range(5):
        caller.send(small_request())
        caller.send(good_request(random.Random(seed), ""), busy=True)


def _arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="minutes of the soak (30)")
    parser.add_argument("--output", type=Path, help="a JSON file of all figures")
    parser.add_argument("--short", action="store_true", help="small counts: every phase in less than a minute")
    parser.add_argument("--phases", type=_phases, default=list(PHASES), metavar="A,B", help=f"of {','.join(PHASES)}")
    return parser.parse_args()


def _phases(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(PHASES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no phase is called {', '.join(sorted(unknown))}")
    return [name for name in PHASES if name in text.split(",")]
