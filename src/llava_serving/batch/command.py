"""`llava-serving batch`: answers files of requests, on this machine, as the batch endpoint does.

  llava-serving batch batch/samples --output answers
  llava-serving batch pictures table.csv requests.jsonl --output answers --prompt "What is in the image?"

Inputs are files or folders: JSON lines of requests (.jsonl), CSV with a column input_string and perhaps image, and
pictures, which are asked what the prompt.txt beside them says, or --prompt. The output folder gets this run's
predictions.csv (file, row, prediction, error, no header, as from Azure) and answers.jsonl, one line for each row in
order; rows count from 0, blank lines not at all. Stopped or killed, the same command goes on where it was.
"""

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Sequence
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
    """The exit status: 0 when every row is told of, errors among them; 1 where the model cannot be loaded or fails; 2
    for inputs and outputs that cannot be."""
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
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    # Here, so that neither other commands nor mistakes wait for torch.
    from .service import start_batch

    try:
        files = _files(arguments.input, arguments.output)
        rows, errors = _write(arguments.output, files, start_batch(arguments.output / "kept"))
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    except RequestError as error:
        print(f"llava-serving: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {rows} rows, {errors} of them errors")
    return 0


def _write(output: Path, files: Sequence[tuple[Path, str]], batch: "Batch") -> tuple[int, int]:
    """How many rows there are, and how many of them are errors."""
    rows = errors = 0
    with (
        (output / "answers.jsonl").open("w", encoding="utf-8") as lines,
        (output / "predictions.csv").open("w", encoding="utf-8", newline="") as table,
    ):
        records = csv.writer(table, lineterminator="\n")
        for answered in batch.run(files):
            lines.write(json.dumps(asdict(answered), ensure_ascii=False) + "\n")
            records.writerow(answered.columns())
            rows += 1
            errors += answered.error is not None
    return rows, errors


def _files(inputs: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Every file with its name, which is its path below the folder, or of several inputs below what they share; of a
    folder all that is in it, in the order of the names, but for the output."""
    given = [Path(os.path.abspath(path)) for path in inputs]
    # Of one folder itself; of files and of several the folder they are in.
    root = given[0] if len(given) == 1 and given[0].is_dir() else Path(os.path.commonpath([p.parent for p in given]))
    files = []
    for top in given:
        below = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        files += [path for path in below if not path.resolve().is_relative_to(output.resolve())]
    return [(path, name_in(path, root)) for path in files]
