"""The input files of a run on this machine."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .input_names import input_name, is_hidden
from .result_files import ANSWERS_FILE, PREDICTIONS_FILE, PREDICTIONS_FOLDER
from .saved_answers import SAVED_ANSWERS_FOLDER


def find_input_files(inputs: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Returns every input file and its name in the results.

    A name is the path below the input folder. With several inputs it is the path below their common parent folder.
    A folder's files are sorted by name. Hidden files and folders in it are left out, and so are files that a run writes
    into `output`. Raises OSError if an input does not exist, if the run would overwrite an input, or if there is no
    file at all.
    """
    paths = [Path(os.path.abspath(path)) for path in inputs]
    is_one_folder = len(paths) == 1 and paths[0].is_dir()
    root = paths[0] if is_one_folder else Path(os.path.commonpath([path.parent for path in paths]))
    real_output = os.path.realpath(output)
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if not path.is_dir() and os.path.realpath(path) in _result_files(real_output):
            raise FileExistsError(f"{path} is where the results go")
        files += sorted(_files_below(path, real_output, set())) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there is no file in {', '.join(map(str, inputs))}")
    return [(path, input_name(path, root)) for path in dict.fromkeys(files)]


def stat_regular_file(path: Path) -> os.stat_result:
    """Returns the file's status. Raises OSError for anything but a regular file: reading a pipe may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status


def _result_files(output: str) -> tuple[str, str]:
    return f"{output}/{ANSWERS_FILE}", f"{output}/{PREDICTIONS_FILE}"


def _files_below(folder: Path, output: str, visited: set[str]) -> Iterator[Path]:
    """Yields the files below `folder`. Visits each real folder once, however many links point to it.

    Yields the path of a folder that cannot be listed, so that the results report it.
    """
    real_folder = os.path.realpath(folder)
    if real_folder in visited:
        return
    visited.add(real_folder)
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        yield folder
        return
    results = (ANSWERS_FILE, PREDICTIONS_FILE, PREDICTIONS_FOLDER, SAVED_ANSWERS_FOLDER)
    skipped = results if real_folder == output else ()
    for entry in ordered:
        if entry.name in skipped or is_hidden(entry.name):
            continue
        if _is_folder(entry):
            yield from _files_below(Path(entry.path), output, visited)
        else:
            yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
