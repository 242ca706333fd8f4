"""What a run on this machine reads and writes, and what its files are called in the results."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .names import name_in

ANSWERS, PREDICTIONS, KEPT = "answers.jsonl", "predictions.csv", "kept"


def input_files(inputs: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Every file once, with its name: its path below the folder, or of several inputs below what they share.

    Of a folder all that is in it, in the order of the names, but for what a run writes into `output`."""
    given = [Path(os.path.abspath(path)) for path in inputs]
    # Of one folder itself; of files and of several the folder they are in.
    root = given[0] if len(given) == 1 and given[0].is_dir() else Path(os.path.commonpath([p.parent for p in given]))
    written = [output.resolve() / name for name in (ANSWERS, PREDICTIONS, KEPT)]
    files = [path for top in given for path in sorted(_below(top, frozenset()))]
    own = [path for path in files if not any(Path(os.path.realpath(path)).is_relative_to(place) for place in written)]
    return [(path, name_in(path, root)) for path in dict.fromkeys(own)]


def _below(path: Path, above: frozenset[str]) -> Iterator[Path]:
    """The files, through links too; what can be neither read nor walked through, a link back `above` for one, is told
    like a file."""
    real = os.path.realpath(path)
    if not path.is_dir() or real in above:
        yield path
        return
    try:
        found = list(path.iterdir())
    except OSError:
        yield path
        return
    for inside in found:
        yield from _below(inside, above | {real})
