"""The command line, and the file of results."""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from servers import machine

from . import answers, loading, logits, outliers
from .setting import SETTINGS

PARTS = {
    "answers": answers.measure, "logits": logits.measure, "outliers": outliers.measure, "loading": loading.measure
}  # fmt: skip


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--model-dir", type=Path, help="a merged folder, as random_checkpoint.py writes it")
    parser.add_argument("--rounds", type=int, default=3, help="of `loading`")
    arguments = parser.parse_args()
    if arguments.part in ("logits", "loading") and arguments.model_dir is None:
        parser.error(f"{arguments.part} needs --model-dir")
    results = PARTS[arguments.part](arguments)
    _write(arguments.output, arguments.part, results)
    print(json.dumps(results, indent=1))


def _write(output: Path, part: str, results: dict[str, Any]) -> None:
    report = json.loads(output.read_text()) if output.exists() else {}
    report["machine"] = machine() | {"bitsandbytes": version("bitsandbytes")}
    if sys.argv not in report.setdefault("commands", []):
        report["commands"].append(sys.argv)
    report[part] = report.get(part, {}) | results
    output.write_text(json.dumps(report, indent=1) + "\n")
