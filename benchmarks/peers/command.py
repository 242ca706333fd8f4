"""The command line of the comparison, and its rounds."""

import argparse
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from llava_serving.bench.workload import Workload

from .checkpoint import write_checkpoint
from .engine import Engine, PreparationError
from .llama_cpp_peer import llama_cpp_engines
from .openvino_peer import openvino_engines
from .result_file import ResultFile
from .roofline import measure_roofline
from .service_engine import service_engine
from .transformers_peer import transformers_engines
from .turn import Bursts, measure_turn
from .vllm_peer import vllm_engines

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CACHE = ROOT / ".peers"


def main(description: str | None) -> int:
    """Returns the exit code: 1 if no engine could be measured."""
    arguments = _arguments(description)
    # Ends the `with` block of a running server too, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cache = arguments.cache.resolve()
    checkpoint = cache / ("checkpoint-small" if arguments.small else "checkpoint")
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, arguments.small)
    engines = _chosen(cache, checkpoint, arguments)
    result = ResultFile(arguments.output, checkpoint, arguments)
    ready = list(_prepared(engines, result))
    if arguments.prepare_only:
        return 0
    bursts = Bursts(tuple(arguments.callers), Workload("image", arguments.image_size, (arguments.tokens,) * 2))
    for index in range(arguments.rounds):
        result.add_roofline(measure_roofline(arguments.small))
        for engine in ready if index % 2 == 0 else ready[::-1]:
            if not result.has_failed(engine):
                _measure(engine, bursts, index, cache, result)
    return 0 if result.has_bursts() else 1


def _arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: .peers, which git ignores")
    parser.add_argument(
        "--ours", nargs="*", default=["float32:", "bfloat16:LLAVA_DTYPE=bfloat16"], metavar="LABEL:NAME=VALUE,...",
        help="this service with environment variables; source=DIR runs the code of another checkout",
    )  # fmt: skip
    parser.add_argument(
        "--peers", nargs="*", metavar="LABEL", help="the peers whose label begins so, such as openvino or 'vllm'; all"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--image-size", type=int, default=336, metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a toy checkpoint, whose times say nothing")
    parser.add_argument("--prepare-only", action="store_true", help="install and convert, and measure nothing")
    return parser.parse_args()


def _chosen(cache: Path, checkpoint: Path, arguments: argparse.Namespace) -> list[Engine]:
    peers = [
        *openvino_engines(cache, checkpoint), *transformers_engines(checkpoint), *vllm_engines(cache, checkpoint),
        *llama_cpp_engines(cache, checkpoint),
    ]  # fmt: skip
    prefixes = [""] if arguments.peers is None else [prefix.lower() for prefix in arguments.peers]
    chosen = [peer for peer in peers if any(peer.label.lower().startswith(prefix) for prefix in prefixes)]
    return [*(service_engine(text, checkpoint) for text in arguments.ours), *chosen]


def _prepared(engines: Iterable[Engine], result: ResultFile) -> Iterable[Engine]:
    """Yields the engines that could be prepared. The result says of the others why they could not."""
    for engine in engines:
        print(f"{engine.label}: preparing", flush=True)
        try:
            engine.prepare()
        except PreparationError as error:
            result.add_failure(engine, str(error))
            continue
        result.add_engine(engine)
        yield engine


def _measure(engine: Engine, bursts: Bursts, index: int, cache: Path, result: ResultFile) -> None:
    try:
        for row in measure_turn(engine, bursts, index, cache):
            result.add_burst(row)
    except PreparationError as error:
        result.add_failure(engine, str(error))
