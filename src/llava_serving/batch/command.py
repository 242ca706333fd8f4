"""`llava-serving batch`: answers files of requests, on this machine, as the batch endpoint does.

  llava-serving batch batch/samples --output answers
  llava-serving batch pictures table.csv requests.jsonl --output answers --prompt "What is in the image?"

Inputs are files or folders: JSON lines of requests (.jsonl), CSV with a column input_string and perhaps image, and
pictures, which are asked what the prompt.txt beside them says, or --prompt. The output folder gets predictions.csv
(file, row, prediction, error, no header, as from Azure) and answers.jsonl, one line for each row in order. Stopped or
killed, the same command goes on where it was.
"""

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError, StartupError
from .names import name_in

if TYPE_CHECKING:
    from .run import Batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model-dir", type=Path, help="without it AZUREML_MODEL_DIR, or the embedded demo model")
    parser.add_argument("--prompt", help="what pictures are asked that have no prompt.txt beside them")
    parser.add_argument("--parameters", metavar="JSON", help='of pictures and CSV rows: {"max_new_tokens": 64}')


def batch(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when every row is told of, 1 where the model cannot be loaded or fails, 2 for no input."""
    # Here, so that the other commands do not wait for torch.
    from .service import start_batch

    for name, value in (
        ("AZUREML_MODEL_DIR", arguments.model_dir),
        ("LLAVA_BATCH_PROMPT", arguments.prompt),
        ("LLAVA_BATCH_PARAMETERS", arguments.parameters),
    ):
        if value is not None:
            os.environ[name] = str(value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    missing = [path for path in arguments.input if not path.exists()]
    if missing:
        print(f"llava-serving: there is no {missing[0]}", file=sys.stderr)
        return 2
    try:
        rows, errors = _write(arguments, start_batch(arguments.output / "kept"))
    except (StartupError, RequestError) as error:
        print(f"llava-serving: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {rows} rows, {errors} of them errors")
    return 0


def _write(arguments: argparse.Namespace, batch: "Batch") -> tuple[int, int]:
    """How many rows there are, and how many of them are errors."""
    rows = errors = 0
    output: Path = arguments.output
    with (
        (output / "answers.jsonl").open("w", encoding="utf-8") as lines,
        (output / "predictions.csv").open("w", encoding="utf-8", newline="") as table,
    ):
        records = csv.writer(table, lineterminator="\n")
        for answered in batch.run(list(_files(arguments.input))):
            lines.write(json.dumps(asdict(answered), ensure_ascii=False) + "\n")
            records.writerow(answered.columns())
            rows += 1
            errors += answered.error is not None
    return rows, errors


def _files(inputs: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every file with its name; of folders those below, in the order of their names."""
    for given in inputs:
        if given.is_file():
            yield given, given.name
        for path in sorted(given.rglob("*")) if given.is_dir() else ():
            if path.is_file():
                yield path, f"{given.name}/{name_in(path, given)}" if len(inputs) > 1 else name_in(path, given)
