"""The pictures of questions, as files of one folder."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import StartupError

# Names in COCO's archive val2014.zip begin with this. Those in LLaVA's questions do not.
COCO_PREFIX = "COCO_val2014_"


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


def coco_pictures(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Returns the file of each picture, by its name in the questions. Raises StartupError if any is missing.

    A file may have the name in the questions, or this name with or without `COCO_val2014_`.
    """
    pictures = {name: _coco_picture(name, folder) for name in names}
    check_pictures(pictures.values(), folder)
    return pictures


def _coco_picture(name: str, folder: Path) -> Path:
    bare = name.removeprefix(COCO_PREFIX)
    return next((path for path in (folder / bare, folder / f"{COCO_PREFIX}{bare}") if path.is_file()), folder / name)
