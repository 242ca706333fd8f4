"""What an input file is called in the results."""

import os
from pathlib import Path

INPUT_PREFIX = "AZURE_ML_INPUT_"


def name_in(path: Path, root: Path | None) -> str:
    """The path below `root`, with slashes. Without one, below the job's input: each is mounted by itself, at a place
    that differs from job to job; a variable of the job's says where, and if none does, the mount.

    Bytes that are no UTF-8 are written out: the results are."""
    path = path.absolute()
    if root is None:
        inputs = _inputs()
        root = next(folder for folder in path.parents if folder in inputs or os.path.ismount(folder))
    name = path.relative_to(root.absolute()).as_posix()
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _inputs() -> set[Path]:
    variables = [value for name, value in os.environ.items() if name.startswith(INPUT_PREFIX) and value]
    places = [Path(value).absolute() for value in variables]
    return {place if place.is_dir() else place.parent for place in places}
