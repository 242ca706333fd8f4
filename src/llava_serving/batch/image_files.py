"""Turns image files into requests."""

import base64
from pathlib import Path

from ..errors import BadRequest, RequestError, TooLarge
from .input_files import stat_regular_file
from .input_names import name_beside
from .input_row import RowDefaults, request_body

IMAGE_FIELD = "image"  # of the error's `param`
PROMPT_FILE = "prompt.txt"


def image_request(path: Path, name: str, defaults: RowDefaults) -> bytes | RequestError:
    """Returns the request that asks the folder's prompt, or the default prompt, about the image.

    `name` is the image's name in messages.
    """
    try:
        prompt = _folder_prompt(path, name) or defaults.prompt
        if not prompt:
            raise BadRequest("no_prompt", f"{name} has no prompt: put a {PROMPT_FILE} beside it, or set a prompt")
        return request_body(prompt, encode_image(path, name, defaults.max_bytes), defaults.parameters)
    except RequestError as error:
        return error


def encode_image(path: Path, name: str, max_bytes: int) -> str:
    """Returns the file in base64. Raises RequestError if it is larger than `max_bytes` or cannot be read."""
    try:
        if stat_regular_file(path).st_size > max_bytes:
            raise TooLarge("image_too_large", f"{name} has more than {max_bytes:,} bytes", IMAGE_FIELD)
        return base64.b64encode(path.read_bytes()).decode()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        cause = getattr(error, "strerror", None) or error
        raise BadRequest("invalid_image", f"{name} cannot be read: {cause}", IMAGE_FIELD) from None


def _folder_prompt(image: Path, image_name: str) -> str:
    """Returns the text of the `prompt.txt` beside the image, "" if there is none. Raises BadRequest."""
    path, name = image.with_name(PROMPT_FILE), name_beside(image_name, PROMPT_FILE)
    try:
        stat_regular_file(path)
        return path.read_text("utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise BadRequest("no_prompt", f"{name} is not UTF-8") from None
    except OSError as error:
        cause = error.strerror or error
        raise BadRequest("no_prompt", f"{name} cannot be read: {cause}") from None
