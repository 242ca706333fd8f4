"""`llava-serving merge` beside plain reading and writing: python benchmarks/merge.py PARTS --output results/merge.json

PARTS holds base/, delta/ and vision/ (random_parts.py writes some). `plain` reads every file of theirs with `cat` and
writes as many bytes as the result has with `dd`, flushed to the disk: what the same machine needs at the least. The two
take turns. With --cold the page cache is emptied before each, which takes root.
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

from servers import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    scratch = arguments.parts / "scratch"
    merge(arguments.parts, scratch)  # once before, to know the size of the result, and for like beginnings
    size = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
    runs = []
    for number in range(arguments.rounds):
        for kind, work in (("plain", plain), ("merge", merge))[:: 1 if number % 2 else -1]:
            remove(scratch)
            os.sync()
            if arguments.cold:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            started = time.monotonic()
            work(arguments.parts, scratch, size)
            runs.append({"kind": kind, "round": number, "seconds": time.monotonic() - started})
            print(runs[-1], flush=True)
    remove(scratch)
    medians = {kind: statistics.median(r["seconds"] for r in runs if r["kind"] == kind) for kind in ("plain", "merge")}
    read = sum(file.stat().st_size for file in arguments.parts.rglob("*") if file.is_file())
    told = {
        "machine": machine(), "command": sys.argv, "bytes_read": read, "bytes_written": size, "runs": runs,
        "median_seconds": medians, "plain_over_merge": medians["plain"] / medians["merge"],
        # Of the largest child: merge's, for cat and dd are small.
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({key: told[key] for key in ("median_seconds", "plain_over_merge", "peak_resident_mib")}))


def merge(parts: Path, to: Path, _: int = 0) -> None:
    folders = [word for part in ("base", "delta", "vision") for word in (f"--{part}", str(parts / part))]
    command = Path(sys.executable).parent / "llava-serving"
    subprocess.run([command, "merge", *folders, "--output", to], check=True, stdout=subprocess.DEVNULL)


def plain(parts: Path, to: Path, size: int) -> None:
    files = [file for part in ("base", "delta", "vision") for file in (parts / part).iterdir() if file.stat().st_size]
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)
    to.mkdir()
    write = ["dd", "if=/dev/zero", f"of={to / 'result'}", "bs=8M", f"count={size}", "iflag=count_bytes", "conv=fsync"]
    subprocess.run(write, check=True, stderr=subprocess.DEVNULL)


def remove(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
