"""Reads the body of a request, and refuses what is wrong before any of it is parsed."""

from collections.abc import Iterator
from email.message import Message

from ..errors import BadRequest, MethodNotAllowed, RequestTimeout, TooLarge, UnsupportedMediaType
from .http import HttpRequest

# Larger pieces would leave more freed memory in the threads' arenas, and hold Python's lock for longer when copied.
PIECE_BYTES = 256 * 1024


def body_pieces(request: HttpRequest, max_bytes: int) -> Iterator[bytes]:
    """Returns the body of a POST of JSON in pieces, each of which is read when it is asked for.

    Raises RequestError, at once if the headers are wrong.
    """
    _check_headers(request)
    too_large = TooLarge("body_too_large", f"the body has more than the {max_bytes:,} bytes that are accepted")
    if (body_length(request) or 0) > max_bytes:
        raise too_large
    return _checked_pieces(request, max_bytes, too_large)


def body_length(request: HttpRequest) -> int | None:
    """Returns the length of the body in bytes, None if the headers do not say it."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _checked_pieces(request: HttpRequest, max_bytes: int, too_large: TooLarge) -> Iterator[bytes]:
    num_bytes, length = 0, body_length(request)
    for piece in _read_pieces(request):
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise too_large
        yield piece
    if length is not None and num_bytes < length:
        raise BadRequest("incomplete_body", f"the body ended after {num_bytes:,} of {length:,} bytes")


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


def _read_pieces(request: HttpRequest) -> Iterator[bytes]:
    try:
        while piece := request.body.read(PIECE_BYTES):
            yield piece
    except TimeoutError:
        raise RequestTimeout("body_timeout", "the body did not arrive in time") from None
    except Exception as error:  # from the server's HTTP parser, the web framework or the socket
        raise BadRequest("unreadable_body", f"the body could not be read ({type(error).__name__})") from None
