"""The messages of a chat, from OpenAI's JSON to ChatMessages. Both forms of chat share them."""

from collections.abc import Sequence

from ..errors import BadRequest
from ..inputs.prompt import ChatMessage, ImageSource
from .schema import Message, Part


def parse_messages(messages: Sequence[Message], path: str) -> tuple[ChatMessage, ...]:
    """Returns the messages at `path` in the request. Raises BadRequest."""
    parsed = []
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise BadRequest("invalid_request", "a system message must come first", f"{path}[{i}]")
        parsed.append(_parse_message(message, f"{path}[{i}]"))
    if parsed[-1].role != "user":
        raise BadRequest("invalid_request", "the last message must be the user's", f"{path}[{len(parsed) - 1}]")
    return tuple(parsed)


def _parse_message(message: Message, path: str) -> ChatMessage:
    if isinstance(message.content, str):
        return ChatMessage(message.role, message.content)
    texts, images = [], []
    for i, part in enumerate(message.content):
        part_path = f"{path}.content[{i}]"
        _check_part(part, part_path)
        if part.text is not None:
            texts.append(part.text)
        elif part.image_url is not None:
            images.append(ImageSource(part.image_url.url, f"{part_path}.image_url.url"))
    if images and message.role != "user":
        raise BadRequest("invalid_request", "only user messages may have images", images[0].param)
    return ChatMessage(message.role, "\n".join(texts), tuple(images))


def _check_part(part: Part, path: str) -> None:
    if (part.text is None) == (part.type == "text") or (part.image_url is None) == (part.type == "image_url"):
        raise BadRequest("invalid_request", f"a part of type {part.type} must have {part.type} and nothing else", path)
