"""What a run on this machine reads and writes, and what its files are called in the results."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .file_names import name_in

ANSWERS, PREDICTIONS, KEPT = "answers.jsonl", "predictions.csv", "kept"


def input_files(inputs: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Every file with its name: its path below the folder, or of several inputs below what they share.

    Of a folder all that is in it, in the order of the names, but for what a run writes into `output`. Raises OSError
    for an input that is not there or would be written over, and where there is no file at all.
    """
    given = [Path(os.path.abspath(path)) for path in inputs]
    # Of one folder itself; of files and of several the folder they are in.
    root = given[0] if len(given) == 1 and given[0].is_dir() else Path(os.path.commonpath([p.parent for p in given]))
    own = os.path.realpath(output)
    files: list[Path] = []
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        if not path.is_dir() and os.path.realpath(path) in (f"{own}/{ANSWERS}", f"{own}/{PREDICTIONS}"):
            raise FileExistsError(f"{path} is where the results go")
        files += sorted(_below(path, own, set())) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there is no file in {', '.join(map(str, inputs))}")
    return [(path, name_in(path, root)) for path in dict.fromkeys(files)]


def _below(folder: Path, output: str, seen: set[str]) -> Iterator[Path]:
    """The files, in each real folder once, however many links lead there; a folder that cannot be read is told like a
    file."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        yield folder
        return
    written = (ANSWERS, PREDICTIONS, KEPT) if real == output else ()
    for entry in found:
        if entry.name in written:
            continue
        if _is_folder(entry):
            yield from _below(Path(entry.path), output, seen)
        else:
            yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
