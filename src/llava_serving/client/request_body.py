"""A request's body from texts and pictures on the disk."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(
    prompts: str | Sequence[str], images: str | Path | Sequence[str | Path | None] = (), **parameters: Any
) -> dict[str, Any]:
    """The body that asks `prompts`; a prompt with a picture is a question about it. `images` are files.

    One prompt has all `images`; several have one each, None for none, or share one. Raises ValueError for another
    number of them, and OSError for a file that cannot be read.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    images = [images] if isinstance(images, str | Path) else images
    pictures: list[Any] = [None if image is None else _encoded(Path(image)) for image in images]
    if len(prompts) == 1:
        given = [picture for picture in pictures if picture is not None]
        pictures = [given] if given else []
    elif len(pictures) == 1:
        pictures *= len(prompts)
    elif pictures and len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} images for {len(prompts)} prompts: give one for all, or one for each")
    asked: dict[str, Any] = {"input_string": prompts}
    if pictures:
        asked["images"] = pictures
    if parameters:
        asked["parameters"] = parameters
    return {"input_data": asked}


def _encoded(path: Path) -> str:
    if str(path).startswith(("http:/", "https:/", "data:")):
        raise ValueError(
            "images are files here; a URI stands in a body of one's own, where the service allows its host"
        )
    return base64.b64encode(path.read_bytes()).decode()
