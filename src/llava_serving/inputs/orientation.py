"""How EXIF or XMP says to turn a stored picture (EXIF 2.32, 4.6.4 A).

Reads the one entry in place. Pillow would copy all of EXIF several times, and decode what nobody needs.
"""

import re
import struct

from .image_parts import Buffer

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
VALUE_FORMATS = {3: "H", 4: "I"}  # by TIFF type: SHORT, LONG
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: Buffer, xmp: Buffer) -> int | None:
    """Returns the orientation in EXIF, else the one in XMP. Returns None for metadata that cannot be read."""
    try:
        orientation = _exif_orientation(exif)
    except struct.error:  # cut off
        orientation = None
    if orientation is None and (match := XMP_ORIENTATION.search(xmp)):
        return int(match[1])
    return orientation


def _exif_orientation(exif: Buffer) -> int | None:
    """Looks in the first directory only (IFD0), where the orientation of the main picture is."""
    tiff = memoryview(exif)
    while tiff[:6] == EXIF_PREFIX:  # some writers repeat it
        tiff = tiff[6:]
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None or bytes(tiff[2:4]) not in (b"*\0", b"\0*"):
        return None
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    for index in range(count):
        tag, kind, values, value = struct.unpack_from(order + "HHI4s", tiff, directory + 2 + 12 * index)
        if tag == ORIENTATION_TAG:
            return _integer(order, kind, value) if values == 1 else None
    return None


def _integer(order: str, kind: int, value: bytes) -> int | None:
    if kind not in VALUE_FORMATS:
        return None
    (number,) = struct.unpack_from(order + VALUE_FORMATS[kind], value)
    return int(number)
