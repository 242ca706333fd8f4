"""Images of a request: from base64 or a URL to an upright RGB picture. Checks every limit before it decodes."""

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
from .image_url import UrlFetcher, too_many_bytes
from .prompt import ImageSource

Result = TypeVar("Result")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Pillow warns about large pictures. _open checks their size.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# The errors of Pillow's decoders on damaged files. Each format has its own.
DECODE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

# A normal picture has only a few of these parts. A file within the limits can have thousands, and keeps Pillow busy for
# minutes to hours: Pillow inflates every color profile of a PNG, copies all EXIF so far for each further EXIF block,
# and goes over the whole picture again for each scan of a JPEG.
COSTLY_PARTS = {b"iCCP": "color profiles", b"Exif\0\0": "EXIF blocks", b"\xff\xda\0": "JPEG scans"}
MAX_COSTLY_PARTS = 100

# By EXIF orientation.
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
    """The maximum bytes of an encoded image, and the maximum pixels (width x height) of a decoded image."""

    max_bytes: int
    max_pixels: int


class ImageReader:
    """Reads the images of requests. `fetch_url` is None if the operator allows no URLs."""

    def __init__(self, limits: ImageLimits, fetch_url: UrlFetcher | None) -> None:
        self._limits = limits
        self._fetch_url = fetch_url
        # Decoding an image takes a core. One core stays free for the engine, so that large images do not delay the
        # tokens of other requests.
        self._decode_slots = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) - 1))

    def read(self, source: ImageSource, process: Callable[[Image.Image], Result]) -> Result:
        """Returns `process(picture)` for the picture: RGB, upright, the first frame of an animation.

        Raises BadRequest (not an image, damaged, a URL that is not allowed) or TooLarge, with the path `source.param`.
        """
        try:
            encoded = self._encoded(source.data)
            with self._decode_slots:
                return process(decode(encoded, self._limits))
        except RequestError as error:
            error.param = source.param
            raise

    def _encoded(self, data: str) -> bytes:
        """Returns the bytes of the image file."""
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", data) and data[:5].lower() != "data:":
            if self._fetch_url is None:
                raise BadRequest(
                    "image_url_not_allowed",
                    "this deployment does not fetch image URLs; send the image as base64 or as a data: URI",
                )
            return self._fetch_url(data, self._limits.max_bytes)
        return decode_base64(data, self._limits.max_bytes)


def decode_base64(data: str, max_bytes: int) -> bytes:
    """Returns the bytes of a base64 string, bare or in a `data:` URI. Ignores line breaks and spaces."""
    if data[:5].lower() == "data:":
        header, comma, data = data.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadRequest("invalid_image", "a data: URI must have the form data:image/png;base64,<data>")
    if len(data) * 3 // 4 > max_bytes + data.count("\n") + data.count("\r") + 2:
        raise too_many_bytes(max_bytes)
    try:
        encoded = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("invalid_image", "the image is not valid base64") from None
    if len(encoded) > max_bytes:
        raise too_many_bytes(max_bytes)
    if not encoded:
        raise BadRequest("invalid_image", "the image is empty")
    return encoded


def decode(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """Returns an upright RGB picture from the bytes of a file in one of FORMATS. Raises BadRequest or TooLarge."""
    if len(encoded) > limits.max_bytes:
        raise too_many_bytes(limits.max_bytes)
    image = _open(encoded, limits)
    try:
        return to_rgb(apply_orientation(image))
    except DECODE_ERRORS as error:
        raise BadRequest(
            "invalid_image", f"the {image.format} image is damaged and cannot be decoded: {error}"
        ) from None


def _open(encoded: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Opens the picture: reads its header, checks it against the limits, and reads no pixels."""
    for marker, name in COSTLY_PARTS.items():
        if encoded.count(marker) > MAX_COSTLY_PARTS:
            raise BadRequest("invalid_image", f"the image has more than {MAX_COSTLY_PARTS} {name}")
    # Pillow can allocate a frame when it opens a GIF. Its own guard bounds that: it raises above twice
    # MAX_IMAGE_PIXELS, which is one number for the process. It must not be below the limit of this call.
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
        # Pillow decodes it in Python, which blocks all other threads: for seconds with a file of one kilobyte.
        raise BadRequest("invalid_image", "a run-length encoded BMP is not accepted; save it as PNG")
    return image


def apply_orientation(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF says. Ignores EXIF that cannot be read, as image viewers do."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DECODE_ERRORS:
        return image
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB with Pillow as the authors did, which drops alpha. Pillow would clip 16-bit grey."""
    if image.mode.startswith("I"):
        # 16-bit grey becomes its high byte, as in Pillow's own conversion of 16-bit RGB.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert("RGB")
