"""Splits a JPEG into its picture and its metadata (CCITT T.81, Annex B)."""

import re
from collections.abc import Iterator
from io import BytesIO

from .image_parts import ImageParts
from .orientation import EXIF_PREFIX

SIGNATURE = b"\xff\xd8\xff"
START_OF_IMAGE = b"\xff\xd8"
START_OF_SCAN = 0xDA
EXIF_OR_XMP = 0xE1
METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))  # application segments and comments
# The start of a segment. Bytes between segments, other markers and fill bytes are skipped, as libjpeg does.
SEGMENT = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xda-\xef\xfe]")
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
# libjpeg reads from these application segments how the colors are stored. It ignores shorter ones.
COLOR_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}


def split_jpeg(encoded: bytes) -> ImageParts:
    """Returns the parts of a JPEG. The picture has no metadata before its first scan, where Pillow reads it."""
    picture = BytesIO()
    picture.write(START_OF_IMAGE)
    color_segments: dict[int, memoryview] = {}
    exif, xmp = bytearray(), b""
    for marker, segment in _segments(encoded):
        if marker == START_OF_SCAN:
            picture.writelines(color_segments.values())
        if marker not in METADATA:
            picture.write(segment)
        elif marker == EXIF_OR_XMP and segment[4 : 4 + len(EXIF_PREFIX)] == EXIF_PREFIX:
            exif += segment[4 + len(EXIF_PREFIX) :]
        elif marker == EXIF_OR_XMP and segment[4 : 4 + len(XMP_PREFIX)] == XMP_PREFIX:
            xmp = bytes(segment[4 + len(XMP_PREFIX) :])
        elif marker in COLOR_SEGMENTS and _decides_colors(marker, segment):
            color_segments[marker] = segment
    return ImageParts(picture.getvalue(), exif, xmp)


def _segments(encoded: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yields marker and bytes of each segment before the first scan, then the rest of the file as one segment."""
    file = memoryview(encoded)
    position = len(START_OF_IMAGE)
    while match := SEGMENT.search(encoded, position):
        start = match.start()
        marker = encoded[start + 1]
        if marker == START_OF_SCAN:
            yield marker, file[start:]
            return
        position = start + 2 + max(2, int.from_bytes(encoded[start + 2 : start + 4], "big"))
        yield marker, file[start:position]


def _decides_colors(marker: int, segment: memoryview) -> bool:
    prefix, length = COLOR_SEGMENTS[marker]
    return segment[4 : 4 + len(prefix)] == prefix and len(segment) >= 4 + length
