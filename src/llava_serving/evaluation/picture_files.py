"""The pictures of questions, as files of one folder."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import StartupError


def check_pictures(pictures: Iterable[Path], folder: Path) -> None:
    """Raises StartupError if a picture is no file inside the folder, with their number and the first of them."""
    if not folder.is_dir():
        raise StartupError(f"there is no folder {folder}")
    root = folder.resolve()
    wanted = dict.fromkeys(pictures)
    missing = [path for path in wanted if not path.is_file() or not path.resolve().is_relative_to(root)]
    if missing:
        raise StartupError(
            f"{folder} lacks {len(missing)} of {len(wanted)} pictures, the first is {missing[0].relative_to(folder)}"
        )
