"""Turns image files into requests."""

import base64
from pathlib import Path

from ..errors import BadRequest, RequestError, TooLarge
from .input_files import stat_regular_file
from .input_names import utf8_name
from .input_row import RowDefaults, request_body

IMAGE_FIELD = "image"  # of the error's `param`
PROMPT_FILE = "prompt.txt"


def image_request(path: Path, defaults: RowDefaults) -> bytes | RequestError:
    """Returns the request that asks the folder's prompt, or the default prompt, about the image."""
    try:
        prompt = _folder_prompt(path) or defaults.prompt
        if not prompt:
            raise BadRequest("no_prompt", f"the image has no prompt: put a {PROMPT_FILE} beside it, or set a prompt")
        return request_body(prompt, encode_image(path, defaults.max_bytes), defaults.parameters)
    except RequestError as error:
        return error


def encode_image(path: Path, max_bytes: int) -> str:
    """Returns the file in base64. Raises RequestError if it is larger than `max_bytes` or cannot be read."""
    name = utf8_name(path.name)
    try:
        if stat_regular_file(path).st_size > max_bytes:
            raise TooLarge("image_too_large", f"{name} has more than {max_bytes:,} bytes", IMAGE_FIELD)
        return base64.b64encode(path.read_bytes()).decode()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        cause = getattr(error, "strerror", None) or error
        raise BadRequest("invalid_image", f"{name} cannot be read: {cause}", IMAGE_FIELD) from None


def _folder_prompt(image: Path) -> str:
    """Returns the text of the `prompt.txt` beside the image, "" if there is none. Raises BadRequest."""
    path = image.with_name(PROMPT_FILE)
    try:
        stat_regular_file(path)
        return path.read_text("utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise BadRequest("no_prompt", f"the {PROMPT_FILE} beside the image is not UTF-8") from None
    except OSError as error:
        cause = error.strerror or error
        raise BadRequest("no_prompt", f"the {PROMPT_FILE} beside the image cannot be read: {cause}") from None
