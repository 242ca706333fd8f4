"""`llava-serving batch`: answers files of requests on this machine, as the batch endpoint does.

  llava-serving batch batch/samples --output answers
  llava-serving batch pictures table.csv requests.jsonl --output answers --prompt "What is in the image?"

Inputs are files or folders: JSON lines of requests (.jsonl), CSV files with the column input_string and optionally
image, and image files. The prompt of an image is the prompt.txt in its folder, else --prompt. The output folder gets
predictions.csv (file, row, prediction, error, without a header, as from Azure) and answers.jsonl, both with one line
per row, in order. Rows are counted from 0, without blank lines. If the command is stopped or killed, run it again to
continue.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

from ..batch.input_files import find_input_files
from ..batch.result_files import ResultFiles
from ..errors import StartupError
from ..settings import Settings
from .resumable import run_resumable

if TYPE_CHECKING:
    from ..batch.runner import BatchRunner

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model-dir", type=Path, help="default: AZUREML_MODEL_DIR, else the embedded demo model")
    parser.add_argument("--prompt", help="the prompt of each image that has no prompt.txt in its folder")
    parser.add_argument(
        "--parameters", metavar="JSON", help='the parameters of images and CSV rows, such as {"max_new_tokens": 64}'
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 if every row has a result, which may be an error.

    1 if the model cannot be loaded, if it fails, or if the results cannot be written. 2 for wrong inputs, outputs and
    settings. 130 if the run was stopped.
    """
    _set_environment(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        files = find_input_files(arguments.input, arguments.output)
        arguments.output.mkdir(parents=True, exist_ok=True)
        Settings.from_environment(os.environ)
        results = ResultFiles(arguments.output)
    except (OSError, StartupError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    return run_resumable(partial(_run_batch, arguments.output, files, results))


def _set_environment(arguments: argparse.Namespace) -> None:
    for name, value in (
        ("AZUREML_MODEL_DIR", arguments.model_dir),
        ("LLAVA_BATCH_PROMPT", arguments.prompt),
        ("LLAVA_BATCH_PARAMETERS", arguments.parameters),
    ):
        if value is not None:
            os.environ[name] = str(value)


def _run_batch(output: Path, files: Sequence[tuple[Path, str]], results: ResultFiles) -> str:
    """Returns the summary of the run. Raises StartupError, RequestError, OSError or KeyboardInterrupt."""
    logger.info("%d files; loading the model", len(files))
    # Imported here, because torch takes seconds to import. Other commands and wrong arguments need not wait for it.
    from ..batch.startup import start_batch_runner

    with logging_redirect_tqdm():  # prints log lines above the progress bar
        num_rows, num_errors = answer_files(start_batch_runner(output), files, results)
    return f"{output}: {num_rows} rows, {num_errors} of them errors"


def answer_files(runner: "BatchRunner", files: Sequence[tuple[Path, str]], results: ResultFiles) -> tuple[int, int]:
    """Returns the number of rows and the number of errors among them. Stops the running requests if it fails."""
    try:
        return results.write(runner.run(files))
    except BaseException:
        runner.stop()
        raise
