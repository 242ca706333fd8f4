"""The bytes of a request's body, and what can be wrong before anything in them is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Protocol

from ..errors import BadRequest, MethodNotAllowed, RequestError, RequestTimeout, TooLarge, UnsupportedMediaType
from .connection import Connection

# A caller who sends nothing for as long holds a thread for nothing.
STALL_SECONDS = 30.0
# Of silence after which nobody is sending any more.
SILENT_SECONDS = 1.0
PIECE = 64 * 1024


class Body(Protocol):
    """Where the body of a request is read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class HttpRequest:
    """What scoring needs of an HTTP request; header names in lower case."""

    method: str
    headers: Mapping[str, str]
    body: Body
    connection: Connection = field(default_factory=Connection)


def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """The body of a POST of JSON, read no further than the limit. Raises RequestError."""
    if request.method != "POST":
        raise MethodNotAllowed("method_not_allowed", f"{request.method} is not accepted here; send POST")
    media_type = Message()
    media_type["content-type"] = request.headers.get("content-type", "application/json")
    charset = media_type.get_content_charset("utf-8")
    if media_type.get_content_type() != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            "unsupported_media_type", "the body must be JSON in UTF-8: send Content-Type: application/json"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("unsupported_media_type", "a compressed body is not accepted")
    length = request.headers.get("content-length", "")
    too_large = TooLarge("body_too_large", f"the body has more than the {max_bytes:,} bytes that are accepted")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = _read(request, max_bytes + 1)
    if len(body) > max_bytes:
        raise too_large
    if length.isdecimal() and len(body) < int(length):
        raise BadRequest("incomplete_body", f"the body ended after {len(body):,} of {int(length):,} bytes")
    return body


def discard(request: HttpRequest, max_bytes: int) -> None:
    """Reads what is left of a body that is refused: a caller who is still sending would not read the answer."""
    try:
        with request.connection.patience(SILENT_SECONDS):
            while max_bytes > 0 and (piece := request.body.read(min(PIECE, max_bytes))):
                max_bytes -= len(piece)
    except Exception:  # the caller has the answer, or has gone
        return


def _read(request: HttpRequest, size: int) -> bytes:
    try:
        with request.connection.patience(STALL_SECONDS):
            return request.body.read(size)
    except TimeoutError:
        raise RequestTimeout("body_timeout", f"the body did not come within {STALL_SECONDS:.0f} s") from None
    except RequestError:
        raise
    except Exception as error:  # of the server's parser, the web framework or the socket
        raise BadRequest("unreadable_body", f"the body could not be read ({type(error).__name__})") from None
