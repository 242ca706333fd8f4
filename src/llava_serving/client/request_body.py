"""The body of a request, from prompts and image files."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(
    prompts: str | Sequence[str], images: str | Path | Sequence[str | Path | None] = (), **parameters: Any
) -> dict[str, Any]:
    """Returns the body for `prompts`; `images` are paths of files, and a prompt with an image is a question about it.

    A single prompt gets all `images`. Several prompts share one image, or have one each, where None stands for no
    image. Raises ValueError for another number of images, and OSError for a file that cannot be read.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    images = [images] if isinstance(images, str | Path) else images
    encoded: list[Any] = [None if image is None else _encode(Path(image)) for image in images]
    if len(prompts) == 1:
        present = [image for image in encoded if image is not None]
        encoded = [present] if present else []
    elif len(encoded) == 1:
        encoded *= len(prompts)
    elif encoded and len(encoded) != len(prompts):
        raise ValueError(f"{len(encoded)} images for {len(prompts)} prompts: give one image for all, or one for each")
    input_data: dict[str, Any] = {"input_string": prompts}
    if encoded:
        input_data["images"] = encoded
    if parameters:
        input_data["parameters"] = parameters
    return {"input_data": input_data}


def _encode(path: Path) -> str:
    if str(path).startswith(("http:/", "https:/", "data:")):
        raise ValueError(
            "images are files here; write a URI into a body of your own, if the service allows the URI's host"
        )
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image file {path}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path} is a folder, not an image file") from None
