"""A request's body from texts and pictures on the disk."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(prompts: Sequence[str], images: Sequence[Path] = (), **parameters: Any) -> dict[str, Any]:
    """The body that asks `prompts`; a prompt with a picture is a question about it.

    One prompt has all `images`; several have one each, or share one. Raises ValueError for another number of them, and
    OSError for a file that cannot be read.
    """
    encoded = [base64.b64encode(Path(image).read_bytes()).decode() for image in images]
    asked: dict[str, Any] = {"input_string": list(prompts)}
    if encoded and len(prompts) == 1:
        asked["images"] = [encoded]
    elif len(encoded) == 1:
        asked["images"] = encoded * len(prompts)
    elif encoded and len(encoded) == len(prompts):
        asked["images"] = encoded
    elif encoded:
        raise ValueError(f"{len(encoded)} images for {len(prompts)} prompts: give one for all, or one for each")
    if parameters:
        asked["parameters"] = parameters
    return {"input_data": asked}
