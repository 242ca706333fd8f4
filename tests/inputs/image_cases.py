"""Pictures, and the files that Pillow does not write, for the tests of images."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from llava_serving.inputs.image import ImageLimits, decode

Pixels = npt.NDArray[np.uint8]

LIMITS = ImageLimits(max_bytes=20 * 1024 * 1024, max_pixels=50_000_000)
WIDTH, HEIGHT = 23, 17


def scene() -> Pixels:
    """Returns a smooth picture without any symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 11, y * 15, (x * y) % 256], axis=-1).astype(np.uint8)


SCENE = scene()
PICTURE = Image.fromarray(SCENE)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(encoded: bytes) -> Pixels:
    image = decode(encoded, LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image)


def pillow_pixels(encoded: bytes) -> Pixels:
    """Returns the pixels of a file as Pillow alone decodes it."""
    return np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))


def exif(orientation: object) -> Image.Exif:
    result = Image.Exif()
    result[ExifTags.Base.Orientation] = orientation
    return result


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int, color_type: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Builds a PNG; `rows` are unfiltered, `before` and `after` are chunks around the data."""
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height if rows else 0))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(lines)) if rows else b""
    return PNG_SIGNATURE + header + before + data + after + chunk(b"IEND", b"")


def small_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(2, 1, 8, 2, b"\1\2\3\4\5\6", before, after)
