"""Reads a checkpoint's JSON files, and says what is wrong with a file that cannot be read."""

import json
from pathlib import Path
from typing import Any

from .errors import StartupError

LFS_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises StartupError if there is none."""
    if not path.exists():
        raise StartupError(f"there is no {path.name} in {path.parent}{missing_hint(path)}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read: {error}; {damage_hint(path)}") from None
    if not isinstance(content, dict):
        raise StartupError(f"{path} holds no JSON object; {damage_hint(path)}")
    return content


def missing_hint(path: Path) -> str:
    """Returns the end of a message about a file that is not there: what to do if it is a link to nothing."""
    if not path.is_symlink():
        return ""
    return (
        f": {path} is a link to {path.readlink()}, which is not there. A snapshot of Hugging Face's cache holds links: "
        "copy it with `cp -rL`, which copies the files"
    )


def damage_hint(path: Path) -> str:
    """Returns the probable reason why a file cannot be read, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        start = b""
    if start == LFS_POINTER:
        return "it is a git-lfs pointer, not the file: run `git lfs pull` where it was cloned"
    return "it is damaged, truncated or another file by that name: compare its size and hash with the source's"
