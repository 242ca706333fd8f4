"""The entry script of Azure's batch endpoint: init() runs once in each process, run() for each mini-batch of files."""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # Azure mounts the folder, it does not install it

from llava_serving.batch.job_input import job_files, job_tables
from llava_serving.batch.result_files import write_mini_batch
from llava_serving.batch.startup import start_batch_runner


def init() -> None:
    global runner, output
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("llava_serving").setLevel(logging.INFO)  # Azure's driver may have configured the root logger
    # The folder of the job's results. A retried mini-batch, or another job with the same output, continues there.
    output = Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
    runner = start_batch_runner(output)


def run(mini_batch: list[str]) -> list[str]:
    """Writes one line for each row of the files, in order, and returns the files.

    The lines are file, row, prediction, error. Azure counts a mini-batch as failed, and repeats it, if run() returns
    fewer items than the mini-batch has files, but some files have no rows: a prompt.txt, an empty file, and an image
    that a CSV file names. So the script writes the results itself, as `output_action: summary_only` asks.
    """
    paths = [Path(path) for path in mini_batch]
    files = job_files(paths)
    write_mini_batch(runner.run(files, job_tables(paths)), [name for _, name in files], output)
    return mini_batch
