"""Compares the engine's steps by the KV cache's dtype: python benchmarks/kv_cache.py MODEL_DIR --output FILE

It runs `llava-serving bench --profile` with LLAVA_KV_CACHE_DTYPE `auto` and `int8`, in turns, for some numbers of
concurrent callers. A caller sends one request with a picture. Settings of the environment apply to all runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from servers import ROOT, machine

DTYPES = ("auto", "int8")
DECODE = "decode only"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output-tokens", type=int, default=48)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.rounds):
        for callers in arguments.callers:
            for dtype in DTYPES:
                profile = _profile(arguments.model_dir, callers, dtype, arguments.output_tokens)
                runs.append({"callers": callers, "kv_cache_dtype": dtype, "profile": profile})
                settings = {name: value for name, value in os.environ.items() if name.startswith("LLAVA_")}
                report = {"machine": machine(), "command": sys.argv, "settings": settings}
                report |= {"medians": _medians(runs), "runs": runs}
                arguments.output.write_text(json.dumps(report, indent=1) + "\n")
                print(callers, dtype, json.dumps(report["medians"][f"{callers} {dtype}"]))


def _profile(model_dir: Path, callers: int, dtype: str, output_tokens: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "llava_serving", "bench", "--profile", "--model-dir", str(model_dir),
        "--concurrency", str(callers), "--num-requests", str(callers), "--output-tokens", str(output_tokens),
        "--warmup", "1",
    ]  # fmt: skip
    environment = os.environ | {"LLAVA_KV_CACHE_DTYPE": dtype}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    profile: dict[str, Any] = json.loads(output.splitlines()[-1])["profile"]
    return profile


def _medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns for each number of callers and dtype the medians over the rounds, of decode steps in milliseconds."""
    medians = {}
    for key in dict.fromkeys((run["callers"], run["kv_cache_dtype"]) for run in runs):
        some = [run["profile"][DECODE]["parts"] for run in runs if (run["callers"], run["kv_cache_dtype"]) == key]
        medians[f"{key[0]} {key[1]}"] = {
            part: round(statistics.median(parts[part]["median_ms"] for parts in some), 3)
            for part in ("step", "linear layers", "attention", "norms, row-wise")
        }
    return medians


if __name__ == "__main__":
    main()
