"""The two parts of an image file: the picture, a file without metadata, and the metadata that turns the picture."""

from typing import NamedTuple

Buffer = bytes | bytearray | memoryview


class ImageParts(NamedTuple):
    """A file of the picture alone, and the EXIF and XMP of the original file, b"" if it has none."""

    picture: bytes
    exif: Buffer = b""
    xmp: Buffer = b""
