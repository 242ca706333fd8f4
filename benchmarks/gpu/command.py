"""Runs the requested phases one after the other."""

import argparse
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import bandwidth, chats, decode, equality, int8, kernels, launches, prefill
from .context import Context
from .result_file import ResultFile
from .sizes import full, small

PHASES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "bandwidth": bandwidth.measure, "kernels": kernels.measure, "prefill": prefill.measure, "decode": decode.measure,
    "chats": chats.measure, "int8": int8.measure, "launches": launches.measure, "equality": equality.measure,
}  # fmt: skip


def main(description: str | None, root: Path, started: float) -> int:
    """Returns the exit code: 1 if a phase failed or had a wrong result."""
    arguments = _arguments(description)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("llava_serving").setLevel(logging.INFO)
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: try --small")
    context = Context(small() if arguments.small else full(), started)
    result = ResultFile(arguments.output, context.device_name, root, arguments.small)
    context.report(f"{context.device_name}, torch {torch.__version__}")
    for name in arguments.phases:
        result.phases[name] = _run_phase(context, name)
        result.write(context.elapsed)
        context.free_memory()
    wrong = [name for name, phase in result.phases.items() if "error" in phase or not phase["holds"]]
    context.report(f"wrong: {', '.join(wrong)}" if wrong else "every phase has right results")
    return 1 if wrong else 0


def _run_phase(context: Context, name: str) -> dict[str, Any]:
    """Returns the phase's result, or its traceback. The next phases run in either case."""
    started = context.elapsed
    try:
        result = PHASES[name](context)
    except Exception:
        result = {"error": traceback.format_exc()}
        context.report(f"{name} fails:\n{result['error']}")
    return {"seconds": context.elapsed - started} | result


def _arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file, written after every phase")
    parser.add_argument("--small", action="store_true", help="run a toy model on a CPU, in Triton's interpreter")
    parser.add_argument("--phases", type=_phases, default=list(PHASES), metavar="A,B", help=f"of {','.join(PHASES)}")
    return parser.parse_args()


def _phases(text: str) -> list[str]:
    requested = [name for name in PHASES if name in text.split(",")]
    unknown = set(text.split(",")) - set(requested)
    if unknown:
        raise argparse.ArgumentTypeError(f"no phase is called {', '.join(sorted(unknown))}")
    return requested
