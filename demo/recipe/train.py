"""Trains the demo model from nothing and writes base/, delta/ and vision/ into a folder, in the place of what is there:

    python demo/recipe/train.py --output demo

Every stage has a fixed seed and a fixed number of steps. A stage whose file is in the work folder already is not run
again. The whole took 45 minutes of CPU; results differ a little from machine to machine, as rounding does.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are small: more threads only wait for each other

from base import train_base
from layout import write_parts
from llava import train_llava
from pictures import pool
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
    pool(work)
    with ProcessPoolExecutor(2) as workers:  # neither stage needs the other
        stages = [workers.submit(stage, work) for stage in (train_base, train_vision)]
        for stage in stages:
            stage.result()
    train_llava(work)
    write_parts(work, arguments.output)


if __name__ == "__main__":
    main()
