"""What Azure's batch endpoint runs: init() once in each process, run() for each mini-batch of files."""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # Azure mounts the folder, it does not install it

import pandas as pd

from llava_serving.batch.batch_service import start_batch
from llava_serving.batch.file_names import name_in
from llava_serving.batch.run import COLUMNS


def init() -> None:
    global batch
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("llava_serving").setLevel(logging.INFO)  # also where the driver has set logging up already
    # Where the job's results go: a mini-batch that is tried again, or another job with the same output, goes on there.
    output = os.environ.get("AZUREML_BI_OUTPUT_PATH")
    batch = start_batch(Path(output) / "kept" if output else None)


def run(mini_batch: list[str]) -> pd.DataFrame:
    """A line of the result for each row of the files, in order: file, row, prediction, error."""
    files = [(Path(path), name_in(Path(path), None)) for path in mini_batch]
    table = pd.DataFrame([answered.columns() for answered in batch.run(files)], columns=COLUMNS)
    return table.astype({"row": "Int64"})  # a file as a whole has no number
