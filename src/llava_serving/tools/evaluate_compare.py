"""`llava-serving evaluate compare`: what changed between two runs of `evaluate coco`, question by question.

  llava-serving evaluate compare BEFORE AFTER

Both folders are outputs of `evaluate coco` with verdicts. A win is a question to which B's answer has the higher score.
If the interval of a difference includes 0, the runs do not show which model is better.
"""

import argparse
import json
import sys
from pathlib import Path

from ..errors import StartupError
from ..evaluation.coco.comparison import compare, comparison_lines
from ..evaluation.coco.result_rows import read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="the output folder of the first run")
    parser.add_argument("b", type=Path, metavar="B", help="the output folder of the second run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the comparison here as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 with a comparison, 1 without."""
    try:
        first, second = read_results(arguments.a), read_results(arguments.b)
        comparison = compare(first, second)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(comparison, indent=1) + "\n", "utf-8")
    except (StartupError, OSError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    print(f"A: {first['summary']['model']}\nB: {second['summary']['model']}")
    print("\n".join([*comparison_lines(comparison), f"A: {_judge(first)}; B: {_judge(second)}"]))
    print(first["summary"]["note"])
    return 0


def _judge(results: dict[str, dict[str, dict[str, str]]]) -> str:
    judge = results["summary"]["judge"]
    return f"judged by {judge['model']} (version {', '.join(judge['versions']) or 'unknown'})"
