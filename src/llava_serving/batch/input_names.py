"""What an input file is called in the results."""

import os
from pathlib import Path

INPUT_PREFIX = "AZURE_ML_INPUT_"


def name_in(path: Path, root: Path | None) -> str:
    """Relative to `root`, with slashes; without one, to the job input that holds the file (`AZURE_ML_INPUT_*`), else to
    its mount point, because mount paths differ between jobs."""
    path = path.absolute()
    if root is None:
        inputs = _inputs()
        root = next(folder for folder in path.parents if folder in inputs or os.path.ismount(folder))
    return printable(path.relative_to(root.absolute()).as_posix())


def printable(name: str) -> str:
    """A file's name as UTF-8, which the results are: other bytes are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _inputs() -> set[Path]:
    variables = [value for name, value in os.environ.items() if name.startswith(INPUT_PREFIX) and value]
    places = [Path(value).absolute() for value in variables]
    return {place if place.is_dir() else place.parent for place in places}
