"""The files of a mini-batch of Azure's batch driver, and the CSV files of the job that concern them."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from .input_names import input_name, is_hidden, job_folder, job_inputs
from .row_reader import is_image, is_table


def job_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Returns the files with their names in the results. Leaves out hidden files and files in hidden folders."""
    files = [(path, input_name(path, None)) for path in paths]
    return [(path, name) for path, name in files if not is_hidden(name)]


def job_tables(paths: Sequence[Path]) -> list[Path]:
    """Returns the CSV files that may name one of these images: those in its folder or above, inside the job's input.

    Another mini-batch may have them. Without AZURE_ML_INPUT_* the input's root is not known if it is no mount of its
    own. Then only CSV files of this mini-batch count.
    """
    folders = {folder for path in paths if is_image(path) for folder in _input_folders(path.absolute())}
    others = [table for folder in sorted(folders) for table in _tables_in(folder)]
    own = [path.absolute() for path, _ in job_files(paths) if is_table(path)]
    return list(dict.fromkeys([*own, *others]))


def _input_folders(path: Path) -> Iterator[Path]:
    """Yields the folders from the file's own up to the root of its job input. Yields none for an input of one file."""
    root = job_folder(path)
    if path in job_inputs() or root == Path(root.anchor):
        return
    for folder in path.parents:
        yield folder
        if folder == root:
            return


@lru_cache(maxsize=1_000)
def _tables_in(folder: Path) -> tuple[Path, ...]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    return tuple(folder / name for name in names if is_table(Path(name)) and not is_hidden(name))
