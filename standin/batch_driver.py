"""Runs a batch deployment's entry script as Azure does: init() once, run() for each mini-batch of files, and what it
returns appended to a CSV without a header."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("source", type=Path, help="a folder of inputs, or one")
    parser.add_argument("output", type=Path, help="the CSV")
    parser.add_argument("--mini-batch-size", type=int, default=10, help="files")
    arguments = parser.parse_args()
    entry = _load(arguments.script)
    entry.init()
    files = sorted(map(str, _files(arguments.source)))
    for start in range(0, len(files), arguments.mini_batch_size):
        table = entry.run(files[start : start + arguments.mini_batch_size])
        table.to_csv(arguments.output, mode="a", header=False, index=False)


def _load(script: Path) -> Any:
    spec = importlib.util.spec_from_file_location("entry", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
