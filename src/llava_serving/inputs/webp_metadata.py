"""Splits a WebP into its picture and its metadata (WebP Container Specification)."""

import struct
from collections.abc import Iterator
from io import BytesIO

from .image_parts import Buffer, ImageParts

HEADER_BYTES = 12  # "RIFF", the length of the rest, "WEBP"
PICTURE_CHUNKS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM")
FRAME = b"ANMF"
EXIF_FLAG, XMP_FLAG, PROFILE_FLAG = 0x08, 0x04, 0x20


def is_webp(encoded: bytes) -> bool:
    return encoded[:4] == b"RIFF" and encoded[8:HEADER_BYTES] == b"WEBP"


def split_webp(encoded: bytes) -> ImageParts:
    """Returns the parts of a WebP. The picture of an animation is its first frame."""
    picture = BytesIO()
    picture.write(b"RIFF" + bytes(4) + b"WEBP")
    flags, animated = 0, False
    metadata: dict[bytes, Buffer] = {}
    for kind, chunk in _chunks(encoded):
        if kind == b"VP8X":
            flags = chunk[8] if len(chunk) > 8 else 0
            picture.write(_without_metadata_flags(chunk))
        elif kind in PICTURE_CHUNKS:
            picture.write(chunk)
        elif kind == FRAME and not animated:
            animated = True
            picture.write(chunk)
        elif kind in (b"EXIF", b"XMP "):
            metadata.setdefault(kind, chunk[8:])
    picture.seek(4)
    picture.write(struct.pack("<I", len(picture.getbuffer()) - 8))
    exif = metadata.get(b"EXIF", b"") if flags & EXIF_FLAG else b""
    xmp = metadata.get(b"XMP ", b"") if flags & XMP_FLAG else b""
    return ImageParts(picture.getvalue(), exif, xmp)


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the type and all bytes of each chunk. A chunk that is cut off is shorter than it says."""
    end = min(len(encoded), 8 + int.from_bytes(encoded[4:8], "little"))
    file = memoryview(encoded)[:end]
    position = HEADER_BYTES
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", file, position)
        start, position = position, position + 8 + length + length % 2
        yield kind, file[start:position]


def _without_metadata_flags(chunk: memoryview) -> bytes:
    """Returns a VP8X chunk that announces no color profile, EXIF or XMP."""
    edited = bytearray(chunk)
    edited[8:9] = bytes(flags & ~(PROFILE_FLAG | EXIF_FLAG | XMP_FLAG) for flags in edited[8:9])
    return bytes(edited)
