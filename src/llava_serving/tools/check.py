"""`llava-serving check`: what a model folder is, whether it is whole, its hashes, and whether it can talk.

Reads base, delta, merged and CLIP folders in any layout that `merge` reads, and the three parts together. It needs no
GPU and little memory whatever the model's size, and the time of reading it twice.
"""

import argparse
from pathlib import Path

from ..errors import StartupError
from ..progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--no-hashes", action="store_true", help="do not read the files for their hashes")
    parser.add_argument("--no-talk", action="store_true", help="do not measure whether the model knows a sentence")


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 0 for a folder that can be used as what it is, else 1."""
    print(arguments.directory)
    if not arguments.directory.is_dir():
        print("  not usable  there is no such folder")
        return 1
    # Here, so that neither other commands nor mistakes wait for torch.
    from ..weights import file_hashes
    from ..weights.diagnosis import diagnose, speak

    try:
        diagnosis = diagnose(arguments.directory)
        good = True
        for finding in diagnosis.findings:
            good = _tell(finding.what, finding.told, finding.good) and good
        if diagnosis.language and not arguments.no_talk:
            spoken = speak(diagnosis.language)
            good = _tell(spoken.what, spoken.told, spoken.good) and good
        if not arguments.no_hashes:
            progress = Progress("hashed", sum(file.stat().st_size for file in diagnosis.files))
            for line in file_hashes.compare(diagnosis.files, diagnosis.is_authors, progress.advance):
                progress.clear()
                print(f"  {line}", flush=True)
    except StartupError as error:
        print(f"  not usable  {error}")
        return 1
    return 0 if good else 1


def _tell(what: str, told: str, good: bool | None) -> bool:
    print(f"  {what:<8}  {told}", flush=True)
    return good is not False
