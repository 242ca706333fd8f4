"""Runs the phases that are asked for, each by itself."""

import argparse
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import bandwidth, chats, decode, equality, kernels, launches, prefill
from .context import Context
from .record import Record
from .sizes import full, small

PHASES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "bandwidth": bandwidth.measure, "kernels": kernels.measure, "prefill": prefill.measure, "decode": decode.measure,
    "chats": chats.measure, "launches": launches.measure, "equality": equality.measure,
}  # fmt: skip


def main(description: str | None, root: Path, started: float) -> int:
    """The exit code: 1 if a phase failed, or found a result that is not right."""
    arguments = _arguments(description)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("llava_serving").setLevel(logging.INFO)
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: try --small")
    context = Context(small() if arguments.small else full(), started)
    record = Record(arguments.output, context.device_name, root, arguments.small)
    context.say(f"{context.device_name}, torch {torch.__version__}")
    for name in arguments.phases:
        record.phases[name] = _run(context, name)
        record.write(context.elapsed)
        context.tidy()
    wrong = [name for name, found in record.phases.items() if "error" in found or not found["holds"]]
    context.say(f"wrong: {', '.join(wrong)}" if wrong else "every phase holds")
    return 1 if wrong else 0


def _run(context: Context, name: str) -> dict[str, Any]:
    """What the phase found, or how it failed: the next phases run all the same."""
    began = context.elapsed
    try:
        found = PHASES[name](context)
    except Exception:
        found = {"error": traceback.format_exc()}
        context.say(f"{name} fails:\n{found['error']}")
    return {"seconds": context.elapsed - began} | found


def _arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON, written after every phase")
    parser.add_argument("--small", action="store_true", help="a toy on a CPU, in Triton's interpreter")
    parser.add_argument("--phases", type=_phases, default=list(PHASES), metavar="A,B", help=f"of {','.join(PHASES)}")
    return parser.parse_args()


def _phases(text: str) -> list[str]:
    chosen = [name for name in PHASES if name in text.split(",")]
    unknown = set(text.split(",")) - set(chosen)
    if unknown:
        raise argparse.ArgumentTypeError(f"no phase is called {', '.join(sorted(unknown))}")
    return chosen
