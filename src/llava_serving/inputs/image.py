"""An image of a request: from base64 to an upright RGB picture, with every limit checked before it is decoded."""

import base64
import binascii
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

from PIL import ExifTags, Image, ImageFile

from ..errors import BadRequest, RequestError, TooLarge
from .image_url import UrlFetcher
from .prompt import ImageSource

Result = TypeVar("Result")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Pillow warns of a large picture, which _open measures.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# What Pillow's decoders raise on damaged files: each format has its own.
DECODE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

# Parts of which a picture has a few. Thousands of them, in a file within the limits, take Pillow minutes to hours: it
# inflates every color profile of a PNG, copies all EXIF it has read for every further block of it, and goes over the
# whole picture again for every scan of a JPEG.
COSTLY_PARTS = {b"iCCP": "color profiles", b"Exif\0\0": "EXIF blocks", b"\xff\xda\0": "JPEG scans"}
MAX_COSTLY_PARTS = 100

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """Bytes of one encoded image, and pixels (width x height) of one decoded image."""

    max_bytes: int
    max_pixels: int


class ImageReader:
    """Reads the images of a request; `fetch` is None where the operator allows no URLs."""

    def __init__(self, limits: ImageLimits, fetch: UrlFetcher | None) -> None:
        self._limits = limits
        self._fetch = fetch
        # Each takes a core. One core is the engine's, so that nobody's large pictures stall everybody's tokens.
        self._decoding = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) - 1))

    def read(self, source: ImageSource, then: Callable[[Image.Image], Result]) -> Result:
        """What `then` makes of the picture: RGB, upright, the first frame of an animation.

        Raises BadRequest (not an image, damaged, a URL that is not allowed) or TooLarge, both naming `source.param`.
        """
        try:
            encoded = self._encoded(source.data)
            with self._decoding:
                return then(decode(encoded, self._limits))
        except RequestError as error:
            error.param = source.param
            raise

    def _encoded(self, data: str) -> bytes:
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", data) and data[:5].lower() != "data:":
            if self._fetch is None:
                raise BadRequest(
                    "image_url_not_allowed",
                    "image URLs are not fetched by this deployment; send the image as base64 or as a data: URI",
                )
            return self._fetch(data, self._limits.max_bytes)
        return from_base64(data, self._limits.max_bytes)


def from_base64(data: str, max_bytes: int) -> bytes:
    """The bytes of a base64 string, bare or in a `data:` URI; line breaks and spaces are ignored."""
    if data[:5].lower() == "data:":
        header, comma, data = data.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadRequest("invalid_image", "a data: URI must have the form data:image/png;base64,<data>")
    if len(data) * 3 // 4 > max_bytes + data.count("\n") + data.count("\r") + 2:
        raise TooLarge("image_too_large", _too_many_bytes(max_bytes))
    try:
        encoded = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("invalid_image", "the image is not valid base64") from None
    if len(encoded) > max_bytes:
        raise TooLarge("image_too_large", _too_many_bytes(max_bytes))
    if not encoded:
        raise BadRequest("invalid_image", "the image is empty")
    return encoded


def decode(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """An upright RGB picture from the bytes of a file in one of FORMATS."""
    if len(encoded) > limits.max_bytes:
        raise TooLarge("image_too_large", _too_many_bytes(limits.max_bytes))
    image = _open(encoded, limits)
    try:
        return to_rgb(upright(image))
    except DECODE_ERRORS as error:
        raise BadRequest(
            "invalid_image", f"the {image.format} image is damaged and cannot be decoded: {error}"
        ) from None


def _open(encoded: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """The picture with its header read and found within the limits, its pixels not read."""
    for mark, name in COSTLY_PARTS.items():
        if encoded.count(mark) > MAX_COSTLY_PARTS:
            raise BadRequest("invalid_image", f"the image has more than {MAX_COSTLY_PARTS} {name}")
    # Opening a GIF can allocate a frame. Pillow's own guard, which raises above twice its number, bounds that; it is
    # one number for the process, and must not stand in the way of the limit in force.
    Image.MAX_IMAGE_PIXELS = max(limits.max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        image = Image.open(BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLarge(
            "image_too_large", f"the image has more than the {limits.max_pixels:,} pixels that are accepted"
        ) from None
    except DECODE_ERRORS:
        raise BadRequest(
            "invalid_image", f"the image is not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        ) from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooLarge(
            "image_too_large",
            f"the image has {width} x {height} pixels; at most {limits.max_pixels:,} pixels are accepted",
        )
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        # Pillow decodes it in Python, holding up every other thread: seconds for a file of a kilobyte.
        raise BadRequest("invalid_image", "a run-length encoded BMP is not accepted; save it as PNG")
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. EXIF that cannot be read says nothing: no viewer refuses a picture for it."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DECODE_ERRORS:
        return image
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion, as the authors used it (alpha is dropped), but for 16-bit grey, which Pillow would clip."""
    if image.mode.startswith("I"):
        # 16-bit greyscale. The high byte, as Pillow itself takes it of 16-bit RGB.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert("RGB")


def _too_many_bytes(max_bytes: int) -> str:
    return f"the image has more than the {max_bytes:,} bytes that are accepted"
