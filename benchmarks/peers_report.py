"""The page and the plot of a result of `peers.py`: python benchmarks/peers_report.py RESULT

Writes Markdown and SVG beside the result, with its name, or to `--page` and `--plot`.
"""

import argparse
import json
import os
from pathlib import Path

from peers.report_page import page
from peers.report_plot import plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="the JSON file of peers.py")
    parser.add_argument("--page", type=Path, help="the Markdown file to write")
    parser.add_argument("--plot", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    page_file = arguments.page or arguments.result.with_suffix(".md")
    plot_file = arguments.plot or arguments.result.with_suffix(".svg")
    result = json.loads(arguments.result.read_text())
    plot_file.write_text(plot(result))
    page_file.write_text(page(result, os.path.relpath(plot_file, page_file.parent)))


if __name__ == "__main__":
    main()
