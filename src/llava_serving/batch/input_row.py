"""A row of an input file, which is one request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError


@dataclass(frozen=True)
class RowDefaults:
    """What images and CSV rows do not say themselves.

    A `prompt.txt` in an image's folder overrides `prompt`. `max_bytes` limits the body of each row's request.
    """

    prompt: str | None
    parameters: Mapping[str, Any]
    max_bytes: int


@dataclass(frozen=True)
class InputRow:
    """Row `index` of `file`, counted from 0. `index` is None if the error concerns the whole file.

    `request` is the request's body, or the error with which reading the row ended.
    """

    file: str
    index: int | None
    request: bytes | RequestError

    @property
    def num_bytes(self) -> int:
        return len(self.request) if isinstance(self.request, bytes) else 0


def request_body(prompt: str, image: str | None, parameters: Mapping[str, Any]) -> bytes:
    """Returns a request's JSON. `image` is base64 or a URI."""
    input_data: dict[str, Any] = {"input_string": [prompt], "parameters": dict(parameters)}
    if image is not None:
        input_data["images"] = [image]
    return json.dumps({"input_data": input_data}).encode()
