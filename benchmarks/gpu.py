"""What a GPU makes of the engine: python benchmarks/gpu.py --output FILE [--phases decode,chats] [--small]

A random LLaVA of 13B's shape is made on the card; nothing is downloaded. It needs torch, transformers, accelerate,
numpy and Triton, and of this repository `src`, which need not be installed. `--small` runs every phase with a model of
toy size on a CPU, in Triton's interpreter: its times say nothing, its results must be right all the same.

The phases are modules of the folder `gpu`, which Python finds before this file.
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
