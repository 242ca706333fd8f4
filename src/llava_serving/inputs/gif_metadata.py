"""Removes the metadata of a GIF (GIF89a Specification): comments, application data and damaged extensions."""

import re
from io import BytesIO

from .image_parts import ImageParts

SIGNATURES = (b"GIF87a", b"GIF89a")
HEADER_BYTES = 13
BLOCK = re.compile(rb"[!,;]")  # the start of an extension, of an image, and the end
GRAPHIC_CONTROL = 0xF9  # the transparent color, among others, which fills the canvas around the first image
GRAPHIC_CONTROL_BYTES = 4


def split_gif(encoded: bytes) -> ImageParts:
    """Returns the picture. A GIF has no orientation."""
    file = memoryview(encoded)
    position = HEADER_BYTES + _palette_bytes(encoded)
    picture = BytesIO()
    picture.write(file[:position])
    while match := BLOCK.search(encoded, position):
        start = match.start()
        if match[0] == b",":
            picture.write(file[start:])
        if match[0] != b"!":
            break
        position = _end_of_extension(encoded, start)
        if encoded[start + 1 : start + 2] == bytes([GRAPHIC_CONTROL]):
            picture.write(_graphic_control(file[start:position]))
    return ImageParts(picture.getvalue())


def _palette_bytes(encoded: bytes) -> int:
    flags = encoded[10] if len(encoded) > 10 else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_extension(encoded: bytes, start: int) -> int:
    """Returns the position after the empty block that ends an extension, at most the length of the file."""
    position = start + 2
    while position < len(encoded) and encoded[position]:
        position += 1 + encoded[position]
    return min(position + 1, len(encoded))


def _graphic_control(extension: memoryview) -> bytes:
    """Returns a graphic control extension of one block, b"" if it is too short to be one."""
    block = extension[3 : 3 + GRAPHIC_CONTROL_BYTES]
    if len(extension) < 8 or extension[2] < GRAPHIC_CONTROL_BYTES:
        return b""
    return bytes((0x21, GRAPHIC_CONTROL, GRAPHIC_CONTROL_BYTES)) + bytes(block) + b"\0"
