"""Base64 of an image, bare or in a `data:` URI: decodes what clients send, and says what is wrong with the rest.

No function looks at single characters in Python: an image has tens of millions of them.
"""

import base64
import re
import string

from ..errors import BadRequest
from .image_url import too_many_bytes

WRAPPING = string.whitespace + "\"'\ufeff"  # around the text: also quotes, and the byte order mark of a text file
WHITESPACE = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"  # the ASCII part of what str.split() removes
URL_SAFE = bytes.maketrans(b"-_", b"+/")
ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
# RFC 2397 allows them in a data: URI. JavaScript's encodeURIComponent writes the first three.
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%2b": "+", "%2f": "/", "%3d": "=", "%20": " ", "%0A": "\n", "%0D": "\r"}
MAX_HEADER_CHARACTERS = 128
BASE64_ATTRIBUTE = re.compile(r";\s*base64\s*$", re.IGNORECASE)
# Characters decoded at once, so that other threads get Python's lock in between: about 10 ms each. A multiple of 4.
SLICE_CHARACTERS = 1024 * 1024

# What a client sends by mistake. A text longer than MAX_NAME_CHARACTERS is no path and no URL.
MAX_NAME_CHARACTERS = 2048
PYTHON_BYTES = re.compile(r"b['\"]")
URI_WITHOUT_SCHEME = re.compile(r"([\w.+-]+/[\w.+-]+)?;?base64,", re.IGNORECASE)
URL = re.compile(r"//|https?\b|www\.|[\w-]+(\.[\w-]+)*\.[a-z]{2,}(:\d+)?/", re.IGNORECASE)
# Every JPEG starts with /9j/ in base64.
PATH = re.compile(
    r"/(?!9j/)|~/|\.{1,2}[/\\]|\\\\|[a-z]:[/\\]|.*\.(png|jpe?g|webp|gif|bmp|tiff?|heic|avif|svg|txt|b64)$",
    re.IGNORECASE,
)
MIN_IMAGE_CHARACTERS = 32  # no image is smaller


def unwrap(data: str) -> str:
    """Returns a text without the whitespace and the quotes around it."""
    return data.strip(WRAPPING)


def decode_base64(data: str, max_bytes: int) -> bytes:
    """Returns the bytes of an image in base64, bare or in a `data:` URI.

    Accepts the standard and the url-safe alphabet, with or without padding, percent-encoded as in a URI, in quotes,
    and with whitespace anywhere. Raises BadRequest or TooLarge.
    """
    payload = _payload(unwrap(data))
    try:
        characters = _normalize(payload)
        if (len(characters) - characters[-2:].count(b"=")) * 3 // 4 > max_bytes:
            raise too_many_bytes(max_bytes)
        encoded = _decode(characters)
    except ValueError:  # of encode() or of b64decode()
        raise BadRequest("invalid_image", f"the image is not valid base64: {_fault(data, payload)}") from None
    if not encoded:
        raise BadRequest("invalid_image", "the image is empty")
    return encoded


def likely_mistake(data: str) -> str | None:
    """Returns what a text seems to be instead of an image in base64, None if it looks like nothing else."""
    return _likely_mistake(_payload(unwrap(data)))


def _payload(text: str) -> str:
    """Returns what follows the header of a `data:` URI, or the text itself."""
    if text[:5].lower() != "data:":
        return text
    header, comma, payload = text.partition(",")
    if not comma or not BASE64_ATTRIBUTE.search(header[-MAX_HEADER_CHARACTERS:]):
        raise BadRequest(
            "invalid_image", "the data: URI has no ;base64; it must have the form data:image/png;base64,<data>"
        )
    return payload.lstrip(WRAPPING)


def _unescape(payload: str) -> str:
    if "%" in payload:
        for escape, character in ESCAPES.items():
            payload = payload.replace(escape, character)
    return payload


def _normalize(payload: str) -> bytes:
    """Returns the standard alphabet with padding, without whitespace. Raises ValueError for other text."""
    payload = _unescape(payload)
    if not payload.isascii():
        payload = "".join(payload.split())  # Unicode has more kinds of spaces
    characters = payload.encode("ascii").translate(URL_SAFE, WHITESPACE)
    if len(characters) % 4 and characters.endswith(b"=") and _has_spaces_for_plus(payload):
        raise ValueError("the spaces were characters: the padding fits only with them")
    content = characters.rstrip(b"=") or characters
    return content + b"=" * (-len(content) % 4)


def _decode(characters: bytes) -> bytes:
    if 0 <= characters.find(b"=") < len(characters) - 2:
        raise ValueError("padding before the end")
    slices = range(0, len(characters), SLICE_CHARACTERS)
    return b"".join(base64.b64decode(characters[i : i + SLICE_CHARACTERS], validate=True) for i in slices)


def _fault(data: str, payload: str) -> str:
    """Returns what is wrong with a payload that is not base64. Quotes one character of it at most."""
    if mistake := _likely_mistake(payload):
        return mistake
    if payload.endswith(("...", "\u2026")):
        return "it is cut off, and ends in an ellipsis"
    text = _unescape(payload)
    index = _wrong_character(text)
    if index is None:
        count = len(_normalize(payload).rstrip(b"="))
        return f"it is cut off: {count:,} characters of base64 are no whole number of bytes"
    start = len(data) - len(data.lstrip(WRAPPING)) + len(unwrap(data)) - len(payload)
    origin = "0" if text == payload else "0, after percent-decoding"
    name = "padding (=)" if text[index] == "=" else f"the character {text[index]!a}"
    return f"it has {name} at position {start + index} (counted from {origin})"


def _wrong_character(text: str) -> int | None:
    """Returns the index of the first character that is not of base64, or of padding that comes too early."""
    for start in range(0, len(text), SLICE_CHARACTERS):
        characters = _as_ascii(text[start : start + SLICE_CHARACTERS])
        wrong = characters.translate(None, ALPHABET + b"-_=" + WHITESPACE)
        if wrong:
            return start + characters.index(wrong[0])
    content = text.rstrip("=" + string.whitespace)
    padding = text.find("=")
    return padding if 0 <= padding < len(content) or not content else None


def _as_ascii(text: str) -> bytes:
    """Returns as many characters as the text has, a space for each kind of space, a question mark for others."""
    return (text if text.isascii() else re.sub(r"\s", " ", text)).encode("ascii", "replace")


def _likely_mistake(payload: str) -> str | None:
    if PYTHON_BYTES.match(payload):
        return "it is a Python bytes literal, b'...'; send the text inside of it, as .decode() returns it"
    if URI_WITHOUT_SCHEME.match(payload[:MAX_HEADER_CHARACTERS]):
        return 'it looks like a data: URI without "data:"; send data:image/png;base64,<data>'
    if _has_spaces_for_plus(payload):
        return 'it has spaces, which seem to have been "+": form-encoding turns "+" into a space; send it as JSON'
    if len(payload) > MAX_NAME_CHARACTERS:
        return None
    if URL.match(payload):
        return "it looks like a URL without https://; send the picture itself as base64"
    if PATH.match(payload):
        return "it looks like a file path; send the content of the file as base64"
    return None


def _has_spaces_for_plus(payload: str) -> bool:
    """Returns whether the payload is base64 of a whole length if its spaces count, and has no "+" beside them."""
    characters = payload.encode("ascii", "replace").translate(None, b"\r\n")
    content = characters.rstrip(b"=")
    return (
        len(content) > MIN_IMAGE_CHARACTERS
        and b" " in content
        and b"+" not in content
        and len(characters) % 4 == 0
        and not content.translate(None, ALPHABET + b" ")
    )
