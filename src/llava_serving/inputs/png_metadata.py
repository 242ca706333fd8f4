"""Splits a PNG into its picture and its metadata.

The picture is a PNG of the chunks that decide RGB pixels: IHDR, PLTE and IDAT. tRNS decides alpha, which the service
drops. So no other chunk, no wrong checksum of one and no missing end makes a picture unreadable.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from .image_parts import Buffer, ImageParts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = bytes(4) + b"IEND\xaeB`\x82"
TEXT_TYPES = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEYWORD = b"XML:com.adobe.xmp"
EXIF_KEYWORD = b"Raw profile type exif"  # ImageMagick's name for EXIF as hexadecimal text
MAX_KEYWORD_BYTES = 79
MAX_TEXT_BYTES = 1024 * 1024  # read from a text, and inflated from it


class Chunk(NamedTuple):
    """One chunk: its type, its data, and all its bytes. A chunk that is cut off is shorter than it says."""

    type: bytes
    data: memoryview
    whole: memoryview

    def is_intact(self) -> bool:
        """Returns whether the checksum fits type and data."""
        return zlib.crc32(self.whole[4:-4]) == int.from_bytes(self.whole[-4:], "big")


def split_png(encoded: bytes) -> ImageParts:
    """Returns the parts of a PNG."""
    picture, metadata = _Picture(), _Metadata()
    for chunk in _chunks(memoryview(encoded)):
        if chunk.type == b"IEND":
            break
        picture.add(chunk)
        metadata.add(chunk)
    return ImageParts(picture.file(), metadata.exif(), metadata.xmp())


def _chunks(file: memoryview) -> Iterator[Chunk]:
    position = len(SIGNATURE)
    while position + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        end = position + 12 + length
        yield Chunk(kind, file[position + 8 : end - 4], file[position:end])
        position = end


class _Picture:
    """Writes a PNG of header, palette and pixels, with all pixels in one IDAT chunk.

    Pillow decodes each IDAT chunk separately, and a hostile file has millions of them.
    """

    def __init__(self) -> None:
        self._header = b""
        self._palette = b""
        self._file = BytesIO()
        self._pixels_start = 0

    def add(self, chunk: Chunk) -> None:
        if chunk.type == b"IDAT":
            self._start_pixels()
            self._file.write(chunk.data)
        elif chunk.type == b"IHDR" and not self._header:
            self._header = bytes(chunk.whole)
        elif chunk.type == b"PLTE":
            self._palette = bytes(chunk.whole)

    def _start_pixels(self) -> None:
        if not self._pixels_start:
            self._file.write(SIGNATURE + self._header + self._palette + bytes(4) + b"IDAT")
            self._pixels_start = self._file.tell()

    def file(self) -> bytes:
        """Returns the PNG. Its pixels have no true checksum, because Pillow checks none of IDAT."""
        if not self._pixels_start:
            return SIGNATURE + self._header + self._palette + END
        length = self._file.tell() - self._pixels_start
        self._file.write(bytes(4) + END)
        self._file.seek(self._pixels_start - 8)
        self._file.write(struct.pack(">I", length))
        return self._file.getvalue()


class _Metadata:
    """Finds EXIF and XMP, the last of each. Ignores a chunk with a wrong checksum, as libpng does."""

    def __init__(self) -> None:
        self._exif: Buffer = b""
        self._texts: dict[bytes, Chunk] = {}

    def add(self, chunk: Chunk) -> None:
        if chunk.type == b"eXIf" and chunk.is_intact():
            self._exif = chunk.data
        elif chunk.type in TEXT_TYPES:
            keyword = bytes(chunk.data[: MAX_KEYWORD_BYTES + 1]).partition(b"\0")[0]
            if keyword in (XMP_KEYWORD, EXIF_KEYWORD) and chunk.is_intact():
                self._texts[keyword] = chunk

    def exif(self) -> Buffer:
        return self._exif or _from_hexadecimal(self._text(EXIF_KEYWORD))

    def xmp(self) -> Buffer:
        return self._text(XMP_KEYWORD)

    def _text(self, keyword: bytes) -> bytes:
        return _text(self._texts[keyword]) if keyword in self._texts else b""


def _text(chunk: Chunk) -> bytes:
    """Returns the text of a text chunk, at most MAX_TEXT_BYTES of it, b"" if it cannot be inflated."""
    text = bytes(chunk.data[:MAX_TEXT_BYTES]).partition(b"\0")[2]
    if chunk.type == b"tEXt":
        return text
    if chunk.type == b"zTXt":
        return _inflate(text[1:])  # a byte for the method comes first
    compressed = text[:1] != b"\0"
    text = text[2:].split(b"\0", 2)[-1]  # after flag and method: language, keyword in that language, text
    return _inflate(text) if compressed else text


def _inflate(compressed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _from_hexadecimal(profile: bytes) -> bytes:
    """Returns the bytes of a raw profile: an empty line, a name, a length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode())
    except ValueError:
        return b""
