"""Pictures small enough to embed a hundred of them in one page."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

LONGEST_SIDE = 384
JPEG_QUALITY = 80


def thumbnail_uri(path: Path) -> str:
    """Returns a `data:` URI of a JPEG, at most LONGEST_SIDE pixels long, or "" if the file is no picture."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
