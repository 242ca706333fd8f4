"""Measures the engine on a GPU: python benchmarks/gpu.py --output FILE [--phases decode,chats] [--small]

The model is a random LLaVA of 13B's shape, made on the GPU. Nothing is downloaded. The script needs torch,
transformers, accelerate, numpy and Triton, and `src` of this repository, which need not be installed. `--small` runs
every phase with a toy model on a CPU, in Triton's interpreter. Its times are meaningless; its results must be right.

The phases are modules of the folder `gpu`. Python finds this folder before this file.
"""

import os
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
if "--small" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
sys.path.insert(0, str(ROOT / "src"))

from gpu.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__, ROOT, STARTED))
