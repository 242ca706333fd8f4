"""`llava-serving check`: says what a model folder is, whether it is complete and whether the model can talk.

It reads base, delta, merged and CLIP folders in every layout that `merge` reads, and a folder with all three parts. It
counts the values that are NaN or infinite, and the sums that overflow float16, by tensor. It prints the files' hashes.
The model can talk if its loss on an ordinary sentence is far below that of guessing. The check needs no GPU and little
memory, whatever the model's size, and takes as long as reading the folder three times.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StartupError
from ..progress import Progress

if TYPE_CHECKING:
    from ..weights.diagnosis import Diagnosis, Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--no-hashes", action="store_true", help="do not compute the files' hashes")
    parser.add_argument("--no-values", action="store_true", help="do not look for NaN, infinite and too large values")
    parser.add_argument("--no-talk", action="store_true", help="do not measure the loss on an ordinary sentence")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 if the folder can be used as what it is, else 1."""
    print(arguments.directory)
    if not arguments.directory.is_dir():
        print("  not usable  there is no such folder")
        return 1
    # Imported here, because torch takes seconds to import. Other commands and wrong arguments need not wait for it.
    from ..weights.diagnosis import diagnose, find_non_finite, measure_language

    try:
        diagnosis = diagnose(arguments.directory)
        are_good = [_print_finding(finding) for finding in diagnosis.findings]
        if not arguments.no_values:
            are_good.append(_print_finding(find_non_finite(diagnosis.tensors)))
        if diagnosis.language_model and not arguments.no_talk:
            are_good.append(_print_finding(measure_language(diagnosis.language_model)))
        if not arguments.no_hashes:
            _print_hashes(diagnosis)
    except StartupError as error:
        print(f"  not usable  {error}")
        return 1
    return 0 if all(are_good) else 1


def _print_finding(finding: "Finding") -> bool:
    """Returns False if the finding makes the folder unusable."""
    print(f"  {finding.label:<8}  {finding.text}", flush=True)
    return finding.is_good is not False


def _print_hashes(diagnosis: "Diagnosis") -> None:
    from ..weights.file_hashes import hash_lines

    with Progress("hashed", "B", sum(file.stat().st_size for file in diagnosis.files)) as progress:
        for line in hash_lines(diagnosis.files, diagnosis.has_published_hashes, progress.advance):
            progress.clear()
            print(f"  {line}", flush=True)
