"""`llava-serving batch collect`: merges the results of several runs, machines and jobs.

  llava-serving batch collect answers-1 answers-2 --output all.csv --input input

An output is the folder of a run or of a job, or a result file. The merged table is sorted by file and row, and has each
row once: an answer rather than an error, and the first of several answers. With --input the command names the rows of
the input that have no result. The columns are file, row, prediction, error, without a header.
"""

import argparse
import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..batch.collected_results import CollectedResults, Gap, find_result_files
from ..batch.input_counts import count_rows
from ..batch.input_files import find_input_files
from ..errors import StartupError
from ..settings import Settings

MAX_PRINTED_GAPS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="OUTPUT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--input", nargs="+", type=Path, help="the input of the run: files or folders")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if rows of the input have no result, 2 for wrong files and outputs."""
    try:
        paths = find_result_files(arguments.results)
        if arguments.output is not None and arguments.output.absolute() in paths:
            raise StartupError(f"{arguments.output} is one of the result files; choose another --output")
        with CollectedResults() as collected:
            collected.add(paths)
            with _open_output(arguments.output) as output:
                collected.write(output)
            print(_summary(collected, len(paths)), file=sys.stderr)
            return _print_gaps(_gaps(collected, arguments)) if arguments.input else 0
    except BrokenPipeError:  # the reader of standard output has closed it
        raise
    except (OSError, StartupError, sqlite3.Error) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _open_output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with path.open("wb", 2**20) as file:
        yield file


def _summary(collected: CollectedResults, num_files: int) -> str:
    return (
        f"{num_files} result files: {collected.num_rows} rows, {collected.num_errors} of them errors; "
        f"{collected.num_doubles} doubles and {collected.num_cut} cut lines left out"
    )


def _gaps(collected: CollectedResults, arguments: argparse.Namespace) -> Iterator[Gap]:
    max_bytes = Settings.from_environment(os.environ).max_body_bytes
    nowhere = arguments.results[0] / "nothing is written here"
    for name, num_rows in count_rows(find_input_files(arguments.input, nowhere), max_bytes):
        yield from collected.gaps(name, num_rows)


def _print_gaps(gaps: Iterator[Gap]) -> int:
    num_gaps = num_missing = 0
    for gap in gaps:
        num_gaps += 1
        num_missing += 1 if gap.first is None or gap.last is None else gap.last - gap.first + 1
        if num_gaps <= MAX_PRINTED_GAPS:
            print(f"missing: {_describe(gap)}", file=sys.stderr)
    if num_gaps > MAX_PRINTED_GAPS:
        print(f"missing: {num_gaps - MAX_PRINTED_GAPS} more ranges of rows", file=sys.stderr)
    print(f"{num_missing} rows of the input have no result", file=sys.stderr)
    return 1 if num_missing else 0


def _describe(gap: Gap) -> str:
    if gap.first is None:
        return f"{gap.file!r}"
    return f"{gap.file!r} row {gap.first}" if gap.first == gap.last else f"{gap.file!r} rows {gap.first} to {gap.last}"
