"""Compares a file of requests through the engine, all at once, and through `generate`, one row after the other:
python benchmarks/batch.py --output benchmarks/results/batch_demo.json

Both read the same rows in the same process, in turns. Every round has its own questions and images, so that no cache
has them. A batch script that loops over its files sends one row after the other.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from servers import ROOT, machine

from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.runner import BatchRunner
from llava_serving.bench.request import Target
from llava_serving.bench.workload import Workload, request_bodies
from llava_serving.service.engine_builder import build_engine
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.service.startup import PhaseTimes, load

sys.path.insert(0, str(ROOT / "benchmarks" / "generate"))
from score import GenerateEngine

DEFAULTS = RowDefaults(None, {}, 2**26)
WARM_UP_ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", default="mixed", help="default: mixed, which is an image in every second row")
    parser.add_argument("--output-tokens", default="32:256", metavar="MIN:MAX")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    min_tokens, max_tokens = map(int, arguments.output_tokens.split(":"))
    workload = Workload(arguments.workload, 224, (min_tokens, max_tokens))
    runners = {"generate": generate_runner(), "engine": engine_runner()}
    runs = run_rounds(runners, workload, arguments.rows, arguments.rounds)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("LLAVA_", "AZUREML_"))}
    result = {"machine": machine(), "command": sys.argv, "environment": environment, "runs": runs}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    rates = {kind: [run["rows"] / run["seconds"] for run in runs if run["kind"] == kind] for kind in runners}
    ratios = [engine / generate for engine, generate in zip(rates["engine"], rates["generate"], strict=True)]
    print({kind: round(median(rate), 2) for kind, rate in rates.items()}, f"ratio {median(ratios):.1f}")


def run_rounds(runners: dict[str, BatchRunner], workload: Workload, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Returns the seconds of every run. Round -1 warms up and is left out."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(-1, rounds):
            path = Path(folder) / f"{index}.jsonl"
            num_rows = WARM_UP_ROWS if index < 0 else rows
            target = Target("", "score", False)
            path.write_bytes(b"\n".join(request_bodies(target, "", workload, num_rows, index)))
            for kind in sorted(runners, reverse=index % 2 == 0):
                seconds = measure(runners[kind], path, num_rows)
                if index >= 0:
                    runs.append({"kind": kind, "round": index, "rows": num_rows, "seconds": seconds})
                    print(kind, index, f"{num_rows / seconds:.2f} rows/s", flush=True)
    return runs


def generate_runner() -> BatchRunner:
    settings, loaded = load(PhaseTimes())
    engine = GenerateEngine(loaded)
    scorer = Scorer(settings, loaded, engine, RequestLog(Metrics(engine.stats)))  # type: ignore[arg-type]
    return BatchRunner(scorer.answer, 1, DEFAULTS)


def engine_runner() -> BatchRunner:
    settings, loaded = load(PhaseTimes())
    engine = build_engine(loaded, settings)
    engine.start()
    scorer = Scorer(settings, loaded, engine, RequestLog(Metrics(engine.stats)))
    return BatchRunner(scorer.answer, settings.max_live_seqs, DEFAULTS)


def measure(runner: BatchRunner, path: Path, num_rows: int) -> float:
    """Returns the seconds for all rows of the file. Ends the program if a row has no answer."""
    started = time.perf_counter()
    results = list(runner.run([(path, path.name)]))
    seconds = time.perf_counter() - started
    errors = [result.error for result in results if result.error]
    if len(results) != num_rows or errors:
        raise SystemExit(f"{len(errors)} of {len(results)} rows are errors: {errors[:1]}")
    return seconds


if __name__ == "__main__":
    main()
