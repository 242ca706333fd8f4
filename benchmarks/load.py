"""Starting from the parts beside plain reading: python benchmarks/load.py PARTS --output results/load.json

PARTS holds base/, delta/ and vision/ (random_parts.py writes some). `load` is the service's loader, into memory in
float16, from the first byte to the last tensor in its place; `plain` reads the same files with `cat`. They take turns,
each with an empty page cache, which takes root.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from servers import machine

LOAD = """
import logging, sys
from pathlib import Path
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_dir import DeltaTrio
logging.basicConfig(level=logging.INFO)
load_model(DeltaTrio(Path(sys.argv[1])), "cpu", "float16")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs = []
    for number in range(arguments.rounds):
        for kind, work in (("plain", plain), ("load", load))[:: 1 if number % 2 else -1]:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            runs.append({"kind": kind, "round": number, "seconds": work(arguments.parts)})
            print(runs[-1], flush=True)
    medians = {kind: statistics.median(r["seconds"] for r in runs if r["kind"] == kind) for kind in ("plain", "load")}
    told = {
        "machine": machine(), "command": sys.argv, "bytes_read": sum(file.stat().st_size for file in files(arguments.parts)),
        "runs": runs, "median_seconds": medians, "plain_over_load": medians["plain"] / medians["load"],
    }  # fmt: skip
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({key: told[key] for key in ("median_seconds", "plain_over_load")}))


def load(parts: Path) -> float:
    """As the service's log has it: without Python's imports, which read other files."""
    run = subprocess.run([sys.executable, "-c", LOAD, parts], check=True, capture_output=True, text=True)
    found = re.search(r"read and merged .* GB in ([\d.]+) s", run.stderr)
    assert found
    return float(found[1])


def plain(parts: Path) -> float:
    started = time.monotonic()
    subprocess.run(["cat", *files(parts)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def files(parts: Path) -> list[Path]:
    return [file for part in ("base", "delta", "vision") for file in (parts / part).iterdir() if file.is_file()]


if __name__ == "__main__":
    main()
