"""What an input file is called in the results."""

import os
from pathlib import Path


def name_in(path: Path, root: Path | None) -> str:
    """The path below `root`, with slashes. Without one, below the folder where its storage is mounted: Azure mounts
    each input by itself, at a place that differs from job to job."""
    path = path.absolute()
    if root is None:
        root = next(folder for folder in path.parents if os.path.ismount(folder))
    return path.relative_to(root.absolute()).as_posix()
