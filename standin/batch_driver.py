"""Runs a batch deployment's entry script as Azure does.

Calls init() once and run() for each mini-batch of files, again if run() raises. Appends the results to a CSV without a
header.
"""

import argparse
import importlib.util
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("source", type=Path, help="an input file, or a folder of input files")
    parser.add_argument("output", type=Path, help="the CSV file of the results")
    parser.add_argument("--mini-batch-size", type=int, default=10, help="number of files in a mini-batch")
    parser.add_argument("--max-retries", type=int, default=3, help="retries of each mini-batch")
    parser.add_argument("--error-threshold", type=int, default=-1, help="files that may fail; -1 is any number")
    arguments = parser.parse_args()
    entry = _load_module(arguments.script)
    entry.init()
    files = sorted(map(str, _files(arguments.source)))
    failed = 0
    for start in range(0, len(files), arguments.mini_batch_size):
        mini_batch = files[start : start + arguments.mini_batch_size]
        table = _run_with_retries(entry, mini_batch, arguments.max_retries + 1)
        if table is not None:
            table.to_csv(arguments.output, mode="a", header=False, index=False)
            continue
        failed += len(mini_batch)
        if 0 <= arguments.error_threshold < failed:
            raise SystemExit(f"{failed} files failed, and error_threshold is {arguments.error_threshold}")
    if files and failed == len(files):
        raise SystemExit("No succeeded mini batch item returned")


def _run_with_retries(entry: Any, mini_batch: list[str], attempts: int) -> Any:
    """Returns the table that run() returns, or None if every attempt raises."""
    for _ in range(attempts):
        try:
            return entry.run(mini_batch)
        except Exception:
            traceback.print_exc()
    return None


def _load_module(script: Path) -> Any:
    spec = importlib.util.spec_from_file_location("entry", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
