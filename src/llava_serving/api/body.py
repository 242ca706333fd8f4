"""Reads the body of a request, and refuses what is wrong before any of it is parsed."""

from email.message import Message

from ..errors import BadRequest, MethodNotAllowed, RequestError, RequestTimeout, TooLarge, UnsupportedMediaType
from .http import HttpRequest

STALL_SECONDS = 30.0  # a client that sends nothing for longer would hold a thread for nothing
DISCARD_SECONDS = 1.0  # a client that sends nothing for longer has stopped sending
CHUNK_BYTES = 64 * 1024


def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """Returns the body of a POST of JSON, and reads at most one byte over the limit. Raises RequestError."""
    _check_headers(request)
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


def discard_body(request: HttpRequest, max_bytes: int) -> None:
    """Reads the rest of a refused body: a client does not read the answer while it sends."""
    try:
        with request.connection.timeout(DISCARD_SECONDS):
            while max_bytes > 0 and (chunk := request.body.read(min(CHUNK_BYTES, max_bytes))):
                max_bytes -= len(chunk)
    except Exception:  # the client has stopped sending, or has disconnected
        return


def _check_headers(request: HttpRequest) -> None:
    if request.method != "POST":
        raise MethodNotAllowed(request.method, "POST")
    media_type = Message()
    media_type["content-type"] = request.headers.get("content-type", "application/json")
    charset = media_type.get_content_charset("utf-8")
    if media_type.get_content_type() != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            "unsupported_media_type", "the body must be JSON in UTF-8: send Content-Type: application/json"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("unsupported_media_type", "a compressed body is not accepted")


def _read(request: HttpRequest, size: int) -> bytes:
    try:
        with request.connection.timeout(STALL_SECONDS):
            return request.body.read(size)
    except TimeoutError:
        raise RequestTimeout("body_timeout", f"no byte of the body arrived for {STALL_SECONDS:.0f} s") from None
    except RequestError:
        raise
    except Exception as error:  # from the server's HTTP parser, the web framework or the socket
        raise BadRequest("unreadable_body", f"the body could not be read ({type(error).__name__})") from None
