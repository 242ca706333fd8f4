"""Runs batch/score.py as Azure does: init() once, run() for each mini-batch, what it returns appended to a CSV.

Arguments: the input folder, the CSV, files in a mini-batch.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    folder, output, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    spec = importlib.util.spec_from_file_location("entry", ROOT / "batch" / "score.py")
    assert spec is not None
    assert spec.loader is not None
    entry = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry)
    entry.init()
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    for start in range(0, len(files), size):
        entry.run(files[start : start + size]).to_csv(output, mode="a", header=False, index=False)


if __name__ == "__main__":
    main()
