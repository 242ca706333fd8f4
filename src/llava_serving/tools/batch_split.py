"""`llava-serving batch split`: splits big .jsonl and .csv files into parts, which several machines answer.

  llava-serving batch split table.csv requests.jsonl --output input --rows 1000

Azure gives each machine whole files, so that one big file keeps one machine busy. The parts of table.csv are
table-000000.csv, table-000001.csv and so on: their names keep the order. Each part of a CSV has the header. Images that
a CSV names are linked into the output folder, or copied, so that the folder is a complete input.
"""

import argparse
import os
import sys
from pathlib import Path

from ..batch.input_parts import split_file
from ..errors import StartupError
from ..settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rows", type=int, default=1000, help="rows in each part (default: 1000)")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 2 for wrong files, outputs and settings."""
    try:
        if arguments.rows < 1:
            raise StartupError("--rows must be at least 1")
        max_bytes = Settings.from_environment(os.environ).max_body_bytes
        for path in arguments.file:
            num_parts = split_file(path, arguments.output, arguments.rows, max_bytes)
            print(f"{path}: {num_parts} parts in {arguments.output}")
    except FileExistsError as error:
        print(f"llava-serving: {error.filename} exists; delete it, or choose another folder", file=sys.stderr)
        return 2
    except (OSError, StartupError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    return 0
