"""The names of input files in the results."""

import os
from pathlib import Path

INPUT_PREFIX = "AZURE_ML_INPUT_"


def input_name(path: Path, root: Path | None) -> str:
    """Returns the path relative to `root`, with slashes.

    Without `root` it is relative to the job input that holds the file (`AZURE_ML_INPUT_*`), else to its mount point:
    mount paths differ between jobs.
    """
    path = path.absolute()
    if root is None:
        job_inputs = _job_inputs()
        root = next(folder for folder in path.parents if folder in job_inputs or os.path.ismount(folder))
    return utf8_name(path.relative_to(root.absolute()).as_posix())


def utf8_name(name: str) -> str:
    """Returns a file name that can be encoded as UTF-8, as the results are. Escapes bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _job_inputs() -> set[Path]:
    variables = [value for name, value in os.environ.items() if name.startswith(INPUT_PREFIX) and value]
    paths = [Path(value).absolute() for value in variables]
    return {path if path.is_dir() else path.parent for path in paths}
