"""Compares `llava-serving merge` with plain reading and writing:
python benchmarks/merge.py PARTS --output results/merge.json

PARTS holds base/, delta/ and vision/ (random_parts.py writes such parts). `plain` reads all their files with `cat` and
writes as many bytes as the merged model has with `dd`, flushed to the disk: the least that this machine needs. The two
run in turns. With --cold the page cache is emptied before each run, which needs root.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from servers import machine

PARTS = ("base", "delta", "vision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    scratch = arguments.parts / "scratch"
    # A first merge shows the size of the result, and leaves the page cache alike for both.
    merge(arguments.parts, scratch)
    num_bytes = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
    runs = run_rounds(arguments.parts, scratch, num_bytes, arguments.rounds, arguments.cold)
    remove(scratch)
    medians = {kind: statistics.median(r["seconds"] for r in runs if r["kind"] == kind) for kind in ("plain", "merge")}
    result = {
        "machine": machine(),
        "command": sys.argv,
        "bytes_read": sum(file.stat().st_size for file in arguments.parts.rglob("*") if file.is_file()),
        "bytes_written": num_bytes,
        "runs": runs,
        "median_seconds": medians,
        "plain_over_merge": medians["plain"] / medians["merge"],
        # The largest child process is the merge: cat and dd are small.
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("median_seconds", "plain_over_merge", "peak_resident_mib")}))


def run_rounds(parts: Path, scratch: Path, num_bytes: int, rounds: int, cold: bool) -> list[dict[str, Any]]:
    """Returns the seconds of every run."""
    runs: list[dict[str, Any]] = []
    for index in range(rounds):
        for kind, work in (("plain", plain), ("merge", merge))[:: 1 if index % 2 else -1]:
            remove(scratch)
            os.sync()
            if cold:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            started = time.monotonic()
            work(parts, scratch, num_bytes)
            runs.append({"kind": kind, "round": index, "seconds": time.monotonic() - started})
            print(runs[-1], flush=True)
    return runs


def merge(parts: Path, output: Path, _: int = 0) -> None:
    folders = [argument for part in PARTS for argument in (f"--{part}", str(parts / part))]
    command = Path(sys.executable).parent / "llava-serving"
    subprocess.run([command, "merge", *folders, "--output", output], check=True, stdout=subprocess.DEVNULL)


def plain(parts: Path, output: Path, num_bytes: int) -> None:
    """Reads all files of the parts, and writes `num_bytes` to the disk."""
    files = [file for part in PARTS for file in (parts / part).iterdir() if file.stat().st_size]
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)
    output.mkdir()
    target = f"of={output / 'result'}"
    write = ["dd", "if=/dev/zero", target, "bs=8M", f"count={num_bytes}", "iflag=count_bytes", "conv=fsync"]
    subprocess.run(write, check=True, stderr=subprocess.DEVNULL)


def remove(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
