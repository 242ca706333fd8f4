"""A file of requests through the engine, all at once, and through `generate`, one after the other:
python benchmarks/batch.py --output benchmarks/results/batch_demo.json

Both read the same rows in the same process, in turns; every round has questions and pictures of its own, so that no
cache knows them. One row after the other is what a batch script does that loops over its files.
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

from llava_serving.batch.run import Batch
from servers import ROOT, machine

from llava_serving.batch.row_reader import Defaults
from llava_serving.bench.request import Target
from llava_serving.bench.workload import Workload, request_bodies
from llava_serving.service.engine_builder import build_engine
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.service.startup import PhaseTimes, load
from llava_serving.settings import Settings

sys.path.insert(0, str(ROOT / "benchmarks" / "generate"))
from score import GenerateEngine

DEFAULTS = Defaults(None, {}, 2**26)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", default="mixed", help="mixed: a picture with every other row")
    parser.add_argument("--output-tokens", default="32:256")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    least, most = map(int, arguments.output_tokens.split(":"))
    workload = Workload(arguments.workload, 224, (least, most))
    batches = {"generate": generate(), "engine": engine()}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, arguments.rounds):  # the first warms up and is not told
            path = Path(folder) / f"{number}.jsonl"
            rows = 8 if number < 0 else arguments.rows
            path.write_bytes(b"\n".join(request_bodies(Target("", "score", False), "", workload, rows, number)))
            for kind in sorted(batches, reverse=number % 2 == 0):
                seconds = measure(batches[kind], path, rows)
                if number >= 0:
                    runs.append({"kind": kind, "round": number, "rows": rows, "seconds": seconds})
                    print(kind, number, f"{rows / seconds:.2f} rows/s", flush=True)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("LLAVA_", "AZUREML_"))}
    told = {"machine": machine(), "command": sys.argv, "environment": environment, "runs": runs}
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    paces = {kind: [run["rows"] / run["seconds"] for run in runs if run["kind"] == kind] for kind in batches}
    ratios = [fast / slow for fast, slow in zip(paces["engine"], paces["generate"], strict=True)]
    print({kind: round(median(pace), 2) for kind, pace in paces.items()}, f"ratio {median(ratios):.1f}")


def generate() -> Batch:
    settings, loaded = load(PhaseTimes())
    made = GenerateEngine(loaded)
    return Batch(Scorer(settings, loaded, made, RequestLog(Metrics(made.stats))).answer, 1, DEFAULTS)  # type: ignore[arg-type]


def engine() -> Batch:
    settings: Settings
    settings, loaded = load(PhaseTimes())
    made = build_engine(loaded, settings)
    made.start()
    return Batch(
        Scorer(settings, loaded, made, RequestLog(Metrics(made.stats))).answer, settings.max_live_seqs, DEFAULTS
    )


def measure(batch: Batch, path: Path, rows: int) -> float:
    """Seconds for all rows of the file, each of them answered."""
    began = time.perf_counter()
    answered = list(batch.run([(path, path.name)]))
    seconds = time.perf_counter() - began
    if len(answered) != rows or any(row.error for row in answered):
        raise SystemExit(f"not every row was answered: {[row.error for row in answered if row.error][:1]}")
    return seconds


if __name__ == "__main__":
    main()
