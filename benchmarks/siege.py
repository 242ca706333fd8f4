"""Besieges the service on the demo model: python benchmarks/siege.py --minutes 30 --output FILE [--phases slow,soak]

Starts the service as `llava-serving serve` does, on a free port, and sends it what the world sends: slow callers, large
pictures, bad bodies, more requests than it takes, callers that leave, and at last SIGTERM. Prints one table. Its exit
status is 1 if a requirement is not met. Traffic goes to 127.0.0.1 only. `--short` runs every phase with small counts.
The service's settings are those of the shell: LLAVA_MAX_NUM_SEQS=8 python benchmarks/siege.py ...

The phases are modules of the folder `siege`. Python finds this folder before this file.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from siege.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(__doc__))
