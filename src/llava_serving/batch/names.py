"""What an input file is called in the results."""

import os
from pathlib import Path

INPUT_PREFIX = "AZURE_ML_INPUT_"


def name_in(path: Path, root: Path | None) -> str:
    """The path below `root`, with slashes. Without one, below the job's input: each is mounted by itself, at a place
    that differs from job to job; a variable of the job's says where, and if none does, the mount."""
    path = path.absolute()
    if root is None:
        root = next(folder for folder in path.parents if folder in _inputs() or os.path.ismount(folder))
    return path.relative_to(root.absolute()).as_posix()


def _inputs() -> set[Path]:
    places = [Path(place).absolute() for name, place in os.environ.items() if name.startswith(INPUT_PREFIX)]
    return {place if place.is_dir() else place.parent for place in places}
