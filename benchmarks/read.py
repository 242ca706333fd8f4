"""Compares reading the parts at a start with plain reading: python benchmarks/read.py PARTS --output results/read.json

PARTS holds base/, delta/ and vision/ (random_parts.py writes such parts). `sums` reads base and delta as the loader
does and adds them by chunks in reused memory, which is the host's work while a GPU copies the chunks. `plain` reads the
same files with `cat`. They take turns, each with an empty page cache, which takes root.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from servers import machine

PARTS = ("base", "delta", "vision")
ADD_CHUNKS = """
import sys, time
from pathlib import Path
import torch
from llava_serving.weights.chunk_reader import read_chunks
from llava_serving.weights.parts import open_parts
torch.set_num_threads(1)
parts = open_parts(*(Path(sys.argv[1]) / part for part in ("base", "delta", "vision")))
started = time.monotonic()
for chunk in read_chunks(parts.merged_tensors.items()):
    chunk.rows(torch.float16)
print(time.monotonic() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs = []
    for index in range(arguments.rounds):
        for kind, measure in (("plain", read_plainly), ("sums", read_and_add))[:: 1 if index % 2 else -1]:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            runs.append({"kind": kind, "round": index, "seconds": measure(arguments.parts)})
            print(runs[-1], flush=True)
    medians = {kind: statistics.median(r["seconds"] for r in runs if r["kind"] == kind) for kind in ("plain", "sums")}
    size = sum(file.stat().st_size for file in files(arguments.parts))
    report = {
        "machine": machine(), "command": sys.argv, "bytes_read": size,
        "runs": runs, "median_seconds": medians, "plain_over_sums": medians["plain"] / medians["sums"],
    }  # fmt: skip
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("median_seconds", "plain_over_sums")}))


def read_and_add(parts: Path) -> float:
    """Returns the seconds without Python's imports, which read other files."""
    run = subprocess.run([sys.executable, "-c", ADD_CHUNKS, parts], check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout)


def read_plainly(parts: Path) -> float:
    """Returns the seconds that `cat` takes for the same files."""
    started = time.monotonic()
    subprocess.run(["cat", *files(parts)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def files(parts: Path) -> list[Path]:
    return [file for part in PARTS for file in (parts / part).iterdir() if file.is_file()]


if __name__ == "__main__":
    main()
