"""Image files as data: URIs, and data: URIs as image files.

A large file is scaled down first: photographs of a phone exceed what Azure's front end accepts in one request, and the
model looks at a few hundred pixels.
"""

import base64
import binascii
import hashlib
import io
import mimetypes
from pathlib import Path

from PIL import Image, ImageOps

MAX_FILE_BYTES = 128 * 1024
# The longest side of an image that was scaled down. CLIP's largest towers see 336 pixels.
MAX_SIDE = 768
JPEG_QUALITY = 90


def data_uri(path: Path) -> str:
    """Returns the file's bytes as they are, or a JPEG that is scaled down if the file is large.

    A large file that Pillow cannot read is returned as it is: the service says what is wrong with it.
    """
    content, media_type = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if len(content) > MAX_FILE_BYTES and (smaller := _scaled_down(content)) is not None:
        content, media_type = smaller, "image/jpeg"
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def write_image(uri: str, folder: Path) -> Path:
    """Writes the image of a data: URI into `folder` and returns its path. Raises ValueError for another URI."""
    header, _, data = uri.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64"):
        raise ValueError("an image of the conversation is not a data:image/...;base64 URI")
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("an image of the conversation is not valid base64") from None
    suffix = mimetypes.guess_extension(header.removeprefix("data:").removesuffix(";base64")) or ".bin"
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    path.write_bytes(content)
    return path


def _scaled_down(content: bytes) -> bytes | None:
    """Returns an upright JPEG whose longest side is at most MAX_SIDE, or None if Pillow cannot read the image."""
    encoded = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))
            upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((MAX_SIDE, MAX_SIDE))
        upright.save(encoded, "JPEG", quality=JPEG_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return encoded.getvalue()
