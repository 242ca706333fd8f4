"""Trains the demo model from scratch and replaces base/, delta/ and vision/ in a folder:

    python demo/recipe/train.py --output demo

Every stage has a fixed seed and a fixed number of steps. A stage does not run if its file is already in the work
folder. All stages took 45 minutes of CPU. Results differ a little between machines, because rounding differs.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads only wait for each other, because the matrices are small

from base import train_base
from layout import write_parts
from llava import train_llava
from training_images import load_pool
from vision import train_vision
from vocabulary import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tiny-llava", metavar="DIR")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    train_tokenizer(work)
    load_pool(work)
    with ProcessPoolExecutor(2) as workers:  # the two stages are independent
        stages = [workers.submit(stage, work) for stage in (train_base, train_vision)]
        for stage in stages:
            stage.result()
    train_llava(work)
    write_parts(work, arguments.output)


if __name__ == "__main__":
    main()
