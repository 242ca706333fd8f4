"""The entry script of Azure's batch endpoint: init() runs once in each process, run() for each mini-batch of files."""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # Azure mounts the folder, it does not install it

import pandas as pd

from llava_serving.batch.input_names import input_name
from llava_serving.batch.row_result import COLUMNS
from llava_serving.batch.startup import start_batch_runner


def init() -> None:
    global runner
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("llava_serving").setLevel(logging.INFO)  # Azure's driver may have configured the root logger
    # The folder of the job's results. A retried mini-batch, or another job with the same output, continues there.
    output = os.environ.get("AZUREML_BI_OUTPUT_PATH")
    runner = start_batch_runner(Path(output) if output else None)


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Returns one line per row of the files, in order, with the columns file, row, prediction and error."""
    files = [(Path(path), input_name(Path(path), None)) for path in mini_batch]
    table = pd.DataFrame([result.columns() for result in runner.run(files)], columns=COLUMNS)
    return table.astype({"row": "Int64"})  # nullable: an error of a whole file has no row
