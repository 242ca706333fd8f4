"""The parts of HTTP requests and responses that the service uses, whatever the web framework."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .connection import Connection
from .paths import SCORE

# The WSGI environment's name of `HttpRequest.began`, which the server's front sets.
BEGAN = "llava.began"


class Body(Protocol):
    """The stream that the body of a request is read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class HttpRequest:
    """The parts of an HTTP request that scoring needs. Header names are in lower case.

    `began` is when its first byte arrived, in seconds of time.monotonic.
    """

    method: str
    headers: Mapping[str, str]
    body: Body
    connection: Connection = field(default_factory=Connection)
    path: str = SCORE
    began: float = field(default_factory=time.monotonic)


class BodyStream(Protocol):
    """A body in pieces. The server calls `close` after the last piece, and earlier if the client disconnects."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response. Its header values hold no commas, because Azure's server splits a value at each comma."""

    status: int
    headers: dict[str, str]
    body: bytes | BodyStream
