"""Images of a request: from base64 or a URL to an upright RGB picture. Checks every limit before it decodes."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

from PIL import Image, ImageFile

from ..errors import BadRequest, RequestError, TooLarge
from . import gif_metadata, jpeg_metadata, png_metadata, webp_metadata
from .image_base64 import decode_base64, likely_mistake, unwrap
from .image_parts import ImageParts
from .image_url import UrlFetcher, too_many_bytes
from .orientation import read_orientation
from .prompt import ImageSource

Result = TypeVar("Result")
MAX_SCHEME_CHARACTERS = 64  # of a URL, with its colon
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Pillow warns about large pictures. _open checks their size.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# The errors of Pillow's decoders on damaged files. Each format has its own.
DECODE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

# libjpeg goes over the whole picture again for each scan. A normal picture has about ten.
JPEG_SCAN = b"\xff\xda\0"
MAX_JPEG_SCANS = 100

STRIP_ROWS = 256  # that are converted at once

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


@dataclass(frozen=True)
class OpenedImage:
    """A picture whose header is read and whose size is accepted. Its pixels are not decoded yet."""

    image: ImageFile.ImageFile
    orientation: int | None

    @property
    def num_pixels(self) -> int:
        width, height = self.image.size
        return width * height

    def decode(self) -> Image.Image:
        """Returns the upright RGB picture, once. Raises BadRequest if the file is damaged.

        A JPEG is decoded in full: at each reduced size that libjpeg offers, the scaled pixels differ (tried with
        gradients and noise).
        """
        _free_webp_decoder_early(self.image)
        try:
            self.image.load()
            rgb = to_rgb(self.image)
            if rgb is not self.image:
                self.image.close()  # frees its pixels before a turn makes another copy
            return apply_orientation(rgb, self.orientation)
        except DECODE_ERRORS as error:
            raise BadRequest(
                "invalid_image", f"the {self.image.format} image is damaged and cannot be decoded: {error}"
            ) from None


class ImageReader:
    """Reads the images of requests. `fetch_url` is None if the operator allows no URLs.

    Every error has the path `source.path`.
    """

    def __init__(self, limits: ImageLimits, fetch_url: UrlFetcher | None) -> None:
        self._limits = limits
        self._fetch_url = fetch_url

    def read(self, source: ImageSource, process: Callable[[OpenedImage], Result]) -> Result:
        """Returns `process(opened)` for the picture: the first frame of an animation.

        Raises BadRequest (not an image, damaged, a URL that is not allowed) or TooLarge.
        """
        return self.process(self.file_of(source), source, process)

    def file_of(self, source: ImageSource) -> bytes:
        """Returns the bytes of the image file. Raises BadRequest or TooLarge."""
        with _errors_about(source):
            if not _is_url(source.data):
                return decode_base64(source.data, self._limits.max_bytes)
            if self._fetch_url is None:
                raise BadRequest(
                    "image_url_not_allowed",
                    "this deployment does not fetch image URLs; send the image as base64 or as a data: URI",
                )
            return self._fetch_url(unwrap(source.data), self._limits.max_bytes)

    def process(self, file: bytes, source: ImageSource, process: Callable[[OpenedImage], Result]) -> Result:
        """Returns `process(opened)` for the picture in the bytes of an image file. Raises BadRequest or TooLarge."""
        with _errors_about(source):
            try:
                return process(open_image(file, self._limits))
            except BadRequest as error:
                # A path can be valid base64, so the error about a file says what its text looks like.
                mistake = None if _is_url(source.data) else likely_mistake(source.data)
                if mistake is None:
                    raise
                raise BadRequest(error.code, f"{error.message}: {mistake}") from None


@contextmanager
def _errors_about(source: ImageSource) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        error.param = source.path
        raise


def _is_url(data: str) -> bool:
    """Returns whether a text starts with a scheme. One letter and a colon are a drive of Windows."""
    start = unwrap(data)[:MAX_SCHEME_CHARACTERS].lower()
    return not start.startswith("data:") and re.match(r"[a-z][a-z0-9+.-]+:", start) is not None


def decode(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """Returns an upright RGB picture from the bytes of a file in one of FORMATS. Raises BadRequest or TooLarge."""
    return open_image(encoded, limits).decode()


def open_image(encoded: bytes, limits: ImageLimits) -> OpenedImage:
    """Reads the header of a file in one of FORMATS, and no pixels. Raises BadRequest or TooLarge."""
    if len(encoded) > limits.max_bytes:
        raise too_many_bytes(limits.max_bytes)
    parts = split_metadata(encoded)
    return OpenedImage(_open(parts.picture, limits), read_orientation(parts.exif, parts.xmp))


def split_metadata(encoded: bytes) -> ImageParts:
    """Returns the file without its metadata, because some metadata makes Pillow refuse a picture or work for minutes.

    A BMP, which has none, and any other file stay as they are.
    """
    if encoded.startswith(png_metadata.SIGNATURE):
        return png_metadata.split_png(encoded)
    if encoded.startswith(jpeg_metadata.SIGNATURE):
        return jpeg_metadata.split_jpeg(encoded)
    if webp_metadata.is_webp(encoded):
        return webp_metadata.split_webp(encoded)
    if encoded.startswith(gif_metadata.SIGNATURES):
        return gif_metadata.split_gif(encoded)
    return ImageParts(encoded)


def _open(encoded: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Opens the picture: reads its header, checks it against the limits, and reads no pixels."""
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
    if image.format == "JPEG" and encoded.count(JPEG_SCAN) > MAX_JPEG_SCANS:
        raise BadRequest("invalid_image", f"the image has more than {MAX_JPEG_SCANS} JPEG scans")
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        # Pillow decodes it in Python, which blocks all other threads: for seconds with a file of one kilobyte.
        raise BadRequest("invalid_image", "a run-length encoded BMP is not accepted; save it as PNG")
    return image


def _free_webp_decoder_early(image: ImageFile.ImageFile) -> None:
    """Makes Pillow free a WebP's decoder before it copies the frame. The decoder holds two frames of 4 bytes a pixel.

    Relies on names inside of Pillow 13.0.0 (WebPImagePlugin.py). Without them only memory is lost.
    """
    get_frame = getattr(image, "_get_next", None)
    if image.format != "WEBP" or get_frame is None:
        return

    def get_only_frame() -> object:
        del image._get_next  # type: ignore[attr-defined]  # or the picture would refer to itself, and stay
        frame = get_frame()
        image._decoder = None  # type: ignore[attr-defined]
        return frame

    image._get_next = get_only_frame  # type: ignore[attr-defined]


def apply_orientation(image: Image.Image, orientation: int | None) -> Image.Image:
    """Turns a picture upright."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB with Pillow as the authors did, which drops alpha. Pillow would clip 16-bit grey."""
    if image.mode.startswith("I"):
        return _deep_gray_to_rgb(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey by its high byte, as Pillow does with 16-bit RGB. In strips: copies take 4 bytes a pixel."""
    rgb = Image.new("RGB", image.size)
    width, height = image.size
    for top in range(0, height, STRIP_ROWS):
        strip = image.crop((0, top, width, min(top + STRIP_ROWS, height)))
        rgb.paste(strip.convert("I").point(lambda value: value / 256).convert("L").convert("RGB"), (0, top))
    return rgb
