"""What the service's process and an input process say to each other."""

from dataclasses import dataclass
from typing import Any

from ..errors import RequestError


@dataclass(frozen=True)
class ReadRequestJob:
    """The data is the body of a request. The result is a ReadRequest."""

    accepts_stream: bool
    path: str


@dataclass(frozen=True)
class ReadImageJob:
    """The data is the file of an image. The result is its pixels."""

    path: str


Job = ReadRequestJob | ReadImageJob


@dataclass(frozen=True)
class Reply:
    """The result of a job, or the refusal of its request, or the traceback of a bug."""

    result: Any = None
    refusal: tuple[type[RequestError], str, str, str | None] | None = None
    failure: str | None = None
