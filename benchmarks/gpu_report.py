"""Tables and a plot of a result of `gpu.py`: python benchmarks/gpu_report.py RESULT [--before FILE] [--plot SVG]

The tables are Markdown, printed or written to `--tables`. The plot is an SVG of the decode steps. `--before` is
`results/gpu_h100_before.json`: the same steps of an earlier engine on the same GPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from gpu.report_plot import decode_plot
from gpu.report_tables import tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="the JSON file of gpu.py")
    parser.add_argument("--before", type=Path, help="the JSON file of an earlier engine's decode steps")
    parser.add_argument("--tables", type=Path, help="the Markdown file to write; by default the tables are printed")
    parser.add_argument("--plot", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text())
    before = _read_before(arguments.before)
    text = tables(result, before)
    if arguments.tables is None:
        print(text)
    else:
        arguments.tables.write_text(text + "\n")
    if arguments.plot is not None:
        arguments.plot.write_text(decode_plot(result, before))


def _read_before(path: Path | None) -> dict[int, float]:
    """Returns milliseconds per decode step by number of sequences, empty without a file."""
    if path is None:
        return {}
    runs: dict[str, Any] = json.loads(path.read_text())["runs"]
    return {int(sequences): run["decode_ms"] for sequences, run in runs.items()}


if __name__ == "__main__":
    main()
