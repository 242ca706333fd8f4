"""`llava-serving batch`: answers files of requests, on this machine, as the batch endpoint does.

  llava-serving batch batch/samples --output answers
  llava-serving batch pictures table.csv requests.jsonl --output answers --prompt "What is in the image?"

Inputs are files or folders: JSON lines of requests (.jsonl), CSV with a column input_string and perhaps image, and
pictures, which are asked what the prompt.txt beside them says, or --prompt. The output folder gets this run's
predictions.csv (file, row, prediction, error, no header, as from Azure) and answers.jsonl, one line for each row in
order; rows count from 0, blank lines not at all. Stopped or killed, the same command goes on where it was.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..batch.results import Results
from ..batch.run_files import KEPT, input_files
from ..errors import RequestError, StartupError
from ..settings import Settings

if TYPE_CHECKING:
    from ..batch.run import Batch

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model-dir", type=Path, help="without it AZUREML_MODEL_DIR, or the embedded demo model")
    parser.add_argument("--prompt", help="what pictures are asked that have no prompt.txt beside them")
    parser.add_argument("--parameters", metavar="JSON", help='of pictures and CSV rows: {"max_new_tokens": 64}')


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when every row is told of, errors among them; 1 where the model cannot be loaded, or fails, or
    the results cannot be written; 2 for inputs, outputs and settings that cannot be; 130 when stopped."""
    for name, value in (
        ("AZUREML_MODEL_DIR", arguments.model_dir),
        ("LLAVA_BATCH_PROMPT", arguments.prompt),
        ("LLAVA_BATCH_PARAMETERS", arguments.parameters),
    ):
        if value is not None:
            os.environ[name] = str(value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        files = _files(arguments.input, arguments.output)
        Settings.from_environment(os.environ)
        results = Results(arguments.output)
    except (OSError, StartupError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    logger.info("%d files; the model is loaded first", len(files))
    try:
        # Here, so that neither other commands nor mistakes wait for torch.
        from ..batch.batch_service import start_batch

        rows, errors = answer_all(start_batch(arguments.output / KEPT), files, results)
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    except (OSError, RequestError) as error:
        print(f"llava-serving: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllava-serving: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{arguments.output}: {rows} rows, {errors} of them errors")
    return 0


def _files(inputs: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Raises OSError for inputs and an output that cannot be."""
    files = input_files(inputs, output)
    output.mkdir(parents=True, exist_ok=True)
    return files


def answer_all(batch: "Batch", files: Sequence[tuple[Path, str]], results: Results) -> tuple[int, int]:
    """How many rows there are, and how many of them are errors. What is under way is not waited for when it fails."""
    try:
        return results.write(batch.run(files))
    except BaseException:
        batch.stop()
        raise
