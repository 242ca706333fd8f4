"""The names of input files in the results and in messages."""

import os
from pathlib import Path, PurePosixPath

INPUT_PREFIX = "AZURE_ML_INPUT_"


def input_name(path: Path, root: Path | None) -> str:
    """Returns the path relative to `root`, with slashes.

    Without `root` it is relative to the job input that holds the file (`AZURE_ML_INPUT_*`), else to its mount point:
    mount paths differ between jobs.
    """
    path = path.absolute()
    root = job_folder(path) if root is None else root.absolute()
    return utf8_name(path.relative_to(root).as_posix())


def job_folder(path: Path) -> Path:
    """Returns the folder of the job input that holds the file, or the mount point that holds it."""
    folders = {path if path.is_dir() else path.parent for path in job_inputs()}
    return next(folder for folder in path.absolute().parents if folder in folders or os.path.ismount(folder))


def name_beside(name: str, other: str) -> str:
    """Returns the name of the file `other`, a path that begins in the folder of the file `name`."""
    return str(PurePosixPath(name).parent / other)


def is_hidden(name: str) -> bool:
    """Returns whether the file, or a folder in its name, begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def utf8_name(name: str) -> str:
    """Returns a file name that can be encoded as UTF-8, as the results are. Escapes bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def job_inputs() -> set[Path]:
    """Returns the inputs of the job: folders and files."""
    return {Path(value).absolute() for name, value in os.environ.items() if name.startswith(INPUT_PREFIX) and value}
