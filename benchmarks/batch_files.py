"""Measures `batch split` and `batch collect` on many rows: seconds and peak memory.
python benchmarks/batch_files.py split --output benchmarks/results/batch_split.json
python benchmarks/batch_files.py collect --output benchmarks/results/batch_collect.json

Split gets one CSV of quoted questions of 60 to 120 characters, without images. Collect gets the result files of
mini-batches of 100 files with 1,000 rows each, with answers of 130 to 1,000 characters. The names of the result files
are in random order, and every fiftieth result file is there twice. The command runs in a process of its own.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import machine

WORDS = "a the red blue small round picture shows table with two cups behind window and light on left person"
ROWS_PER_FILE, FILES_PER_MINI_BATCH = 1_000, 100
MIN_CHARACTERS, MAX_CHARACTERS = 130, 1_000
COMMAND = """
import json, re, sys, time
from pathlib import Path
from llava_serving.tools.cli import main
sys.argv = ["llava-serving", *json.loads(sys.argv[1])]
started = time.perf_counter()
status = main()
seconds = time.perf_counter() - started
(peak_kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"status": status, "seconds": seconds, "peak_bytes": int(peak_kib) * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("split", "collect"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the source is, or is written, and stays; default: none")
    parser.add_argument("--output", type=Path, help="the file of the result; without it the source is only written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        source = folder / "source"
        if not source.exists():
            write_source(source, arguments.command, arguments.rows)
        if arguments.output is not None:
            result = {"machine": machine(), "command": sys.argv, "rows": arguments.rows, "unix_time": time.time()}
            result |= run(arguments.command, source, folder / "target")
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            print({key: result[key] for key in ("rows", "seconds", "peak_bytes", "source_bytes", "target_bytes")})


def write_source(source: Path, command: str, num_rows: int) -> None:
    source.mkdir(parents=True)
    if command == "split":
        write_table(source / "table.csv", num_rows)
    else:
        write_results(source / "predictions", num_rows)
    os.sync()


def run(command: str, source: Path, target: Path) -> dict[str, Any]:
    os.environ["TMPDIR"] = str(source.parent)
    words = ["batch", command, source / "table.csv" if command == "split" else source, "--output", target]
    return measure(words) | {"source_bytes": num_bytes(source), "target_bytes": num_bytes(target)}


def text(generator: random.Random, pool: str, min_characters: int, max_characters: int) -> str:
    """Returns a random part of `pool`."""
    length = generator.randint(min_characters, max_characters)
    start = generator.randrange(len(pool) - length)
    return pool[start : start + length]


def word_pool(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS.split(), k=20_000))


def write_table(path: Path, num_rows: int) -> None:
    generator = random.Random(1)
    pool = word_pool(generator)
    with path.open("w", encoding="utf-8") as file:
        file.write("id,input_string\n")
        for row in range(num_rows):
            file.write(f'{row},"{text(generator, pool, 60, 120)}, and?"\n')


def write_results(folder: Path, num_rows: int) -> None:
    """Writes the result files of the mini-batches, whose names are in random order."""
    folder.mkdir()
    generator = random.Random(1)
    pool = word_pool(generator)
    rows_per_mini_batch = ROWS_PER_FILE * FILES_PER_MINI_BATCH
    for number in range(-(-num_rows // rows_per_mini_batch)):
        rows = range(number * rows_per_mini_batch, min(num_rows, (number + 1) * rows_per_mini_batch))
        lines = (result_line(row, text(generator, pool, MIN_CHARACTERS, MAX_CHARACTERS)) for row in rows)
        path = folder / f"{generator.getrandbits(64):016x}.csv"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        if number % 50 == 0:
            (folder / f"{generator.getrandbits(64):016x}.csv").write_bytes(path.read_bytes())


def result_line(row: int, prediction: str) -> str:
    quoted = f'"{prediction}, ""so"" it is"' if row % 2 else prediction
    return f"parts/table-{row // ROWS_PER_FILE:06}.csv,{row % ROWS_PER_FILE},{quoted},\n"


def measure(words: list[Any]) -> dict[str, Any]:
    """Runs the command. Returns its seconds and its peak memory. Ends the program if it fails."""
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, json.dumps(list(map(str, words)))], capture_output=True, text=True
    )
    print(process.stdout, process.stderr, sep="\n", file=sys.stderr)
    run: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if run.pop("status"):
        raise SystemExit("the command failed")
    return run


def num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
