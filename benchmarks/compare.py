"""Compares the engine with `generate` behind the same server: python benchmarks/compare.py --output results/demo.json

Both servers run at the same time. For each number of concurrent callers the script measures the two in turn, --rounds
times. Each round has new images, so that no cache has them. Prints the table of README.md, and writes all runs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from servers import Server, add_server_arguments, bench, machine, server_environment

KINDS = ("generate", "engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--requests-per-caller", type=float, default=6)
    parser.add_argument("--least-requests", type=int, default=12, help="minimum for every number of callers")
    parser.add_argument("--output-tokens", default="32:256")
    parser.add_argument("--workload", default="image")
    parser.add_argument("--rounds", type=int, default=3)
    add_server_arguments(parser)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    environment = server_environment(arguments)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        with (
            Server("generate", environment, logs / "generate") as generate,
            Server("engine", environment, logs / "engine") as engine,
        ):
            urls = {"generate": generate.url, "engine": engine.url}
            for callers in arguments.callers:
                for index in range(arguments.rounds):
                    for kind in KINDS if index % 2 == 0 else KINDS[::-1]:
                        figures = measure(urls[kind], callers, 1000 * callers + index, arguments)
                        runs.append({"kind": kind, "callers": callers, "round": index, "figures": figures})
                        print(kind, callers, index, f"{figures['output_tokens_per_second']:.1f} tok/s", flush=True)
                        save(arguments, environment, runs)
    print(table(runs))


def measure(url: str, callers: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the results of `llava-serving bench`."""
    count = max(arguments.least_requests, round(arguments.requests_per_caller * callers))
    return bench(
        url, "--concurrency", str(callers), "--num-requests", str(count), "--seed", str(seed), "--workload",
        arguments.workload, "--output-tokens", arguments.output_tokens, "--warmup", "1",
    )  # fmt: skip


def save(arguments: argparse.Namespace, environment: dict[str, str], runs: list[dict[str, Any]]) -> None:
    content = {"machine": machine(), "command": sys.argv, "environment": environment, "runs": runs}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")


def table(runs: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of medians over the rounds."""
    lines = ["| callers | `generate`, tokens/s | engine, tokens/s | ratio | TTFT p50, ms | TPOT p50, ms |"]
    lines.append("|---|---|---|---|---|---|")
    for callers in sorted({run["callers"] for run in runs}):
        results = {kind: [r["figures"] for r in runs if (r["kind"], r["callers"]) == (kind, callers)] for kind in KINDS}
        rate = {kind: median(f["output_tokens_per_second"] for f in results[kind]) for kind in KINDS}
        ttft = {kind: 1e3 * median(f["ttft_seconds"]["p50"] for f in results[kind]) for kind in KINDS}
        tpot = {kind: 1e3 * median(f["tpot_seconds"]["p50"] for f in results[kind]) for kind in KINDS}
        lines.append(
            f"| {callers} | {rate['generate']:.1f} | {rate['engine']:.1f} | "
            f"{rate['engine'] / rate['generate']:.1f} | {ttft['generate']:.0f} -> {ttft['engine']:.0f} | "
            f"{tpot['generate']:.1f} -> {tpot['engine']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
