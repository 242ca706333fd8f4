"""The pictures of the siege: large legal ones of every kind, noise, and two that must be refused."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_ORIENTATION = 0x0112
# Rows of noise, so that an encoded picture of 49 megapixels has megabytes, as a photograph has.
NOISE_SHARE = 1 / 32


def legal_pictures(count: int, side: int) -> list[tuple[str, str]]:
    """Returns `count` different square pictures as (kind, base64), the kinds of KINDS in turns."""
    kinds = list(KINDS)
    with ThreadPoolExecutor(2) as pool:  # an encoder needs about as much memory as the picture
        return list(pool.map(lambda index: _encode(kinds[index % len(kinds)], side, index), range(count)))


def noise_picture(encoded_bytes: int) -> str:
    """Returns a PNG of noise with about `encoded_bytes` bytes, as base64."""
    side = int((encoded_bytes / 3) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return _base64(Image.fromarray(pixels), "PNG", compress_level=0)


def tall_picture(height: int) -> str:
    """Returns a PNG of one black column of `height` pixels, as base64. It is small, and large when it is decoded."""
    deflate = zlib.compressobj(9)
    rows = bytes(4 * 1000)  # the filter and three channels of each row
    data = b"".join(deflate.compress(rows) for _ in range(height // 1000)) + deflate.flush()
    return base64.b64encode(_png(1, height // 1000 * 1000, data)).decode()


def cut_picture(side: int) -> str:
    """Returns the head of a PNG that claims `side` x `side` pixels and holds a few bytes of them, as base64."""
    data = zlib.compress(bytes(1000))
    return base64.b64encode(_png(side, side, data)[: len(PNG_SIGNATURE) + 25 + 8 + len(data) // 2]).decode()


def _encode(kind: str, side: int, index: int) -> tuple[str, str]:
    return kind, KINDS[kind](_pattern(side, index))


def _pattern(side: int, index: int) -> np.ndarray:
    """Returns `side` x `side` bytes: stripes with the period 32 + `index`, and noise in the last rows."""
    rng = np.random.default_rng(index)
    pixels = np.broadcast_to((np.arange(side) // (32 + index) * 37 % 256).astype(np.uint8), (side, side)).copy()
    noisy = max(1, int(side * NOISE_SHARE))
    pixels[-noisy:] = rng.integers(0, 256, (noisy, side), np.uint8)
    return pixels


def _rgb(pixels: np.ndarray) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(channel) for channel in (pixels, pixels[::-1], 255 - pixels)])


def _png_rgb(pixels: np.ndarray) -> str:
    return _base64(_rgb(pixels), "PNG", compress_level=1)


def _png_rgba(pixels: np.ndarray) -> str:
    image = _rgb(pixels)
    image.putalpha(Image.fromarray(pixels))
    return _base64(image, "PNG", compress_level=1)


def _png_palette(pixels: np.ndarray) -> str:
    return _base64(_palette(pixels), "PNG", compress_level=1)


def _png_gray16(pixels: np.ndarray) -> str:
    return _base64(Image.fromarray(pixels.astype(np.uint16) * 257), "PNG", compress_level=1)


def _jpeg_rotated(pixels: np.ndarray) -> str:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return _base64(_rgb(pixels), "JPEG", quality=75, exif=exif)


def _jpeg_progressive(pixels: np.ndarray) -> str:
    return _base64(_rgb(pixels), "JPEG", quality=75, progressive=True)


def _webp(pixels: np.ndarray) -> str:
    return _base64(_rgb(pixels), "WEBP", quality=50, method=0)


def _gif(pixels: np.ndarray) -> str:
    return _base64(_palette(pixels), "GIF")


KINDS: dict[str, Callable[[np.ndarray], str]] = {
    "PNG RGB": _png_rgb, "PNG RGBA": _png_rgba, "PNG palette": _png_palette, "PNG 16-bit gray": _png_gray16,
    "JPEG rotated by EXIF": _jpeg_rotated, "JPEG progressive": _jpeg_progressive, "WebP": _webp, "GIF": _gif,
}  # fmt: skip


def _palette(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([value for entry in range(256) for value in (entry, 255 - entry, entry // 2)])
    return image


def _base64(image: Image.Image, format: str, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, format, **options)
    return base64.b64encode(file.getbuffer()).decode()


def _png(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
