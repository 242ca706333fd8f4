"""The messages of a chat, from OpenAI's JSON to ChatMessages. Both forms of chat share them."""

from collections.abc import Sequence
from typing import Any

from ..errors import BadRequest
from ..inputs.prompt import ChatMessage, ConversationTemplate, ImageSource, Prompt, chat_prompt
from .openai_fields import NEUTRAL_MESSAGE_VALUES, drop_neutral
from .parameters import ParsedParameters
from .schema import Message, Part

SYSTEM_ROLES = ("system", "developer")


def drop_neutral_fields(messages: Any, path: str) -> Any:
    """Returns the messages without the fields that have no effect. Raises BadRequest for a field that has one."""
    if not isinstance(messages, list):
        return messages
    return [
        drop_neutral(message, f"{path}[{i}]", NEUTRAL_MESSAGE_VALUES) if isinstance(message, dict) else message
        for i, message in enumerate(messages)
    ]


def build_chat_prompt(
    messages: Sequence[Message], path: str, template: ConversationTemplate, parameters: ParsedParameters
) -> Prompt:
    """Returns the chat at `path` in the request, in the template. Raises BadRequest."""
    if parameters.values.template == "none":
        message = 'a chat is always put into the template; leave out "template"'
        raise BadRequest("invalid_parameter", message, parameters.path("template"))
    return chat_prompt(_parse_messages(messages, path), template, path)


def _parse_messages(messages: Sequence[Message], path: str) -> tuple[ChatMessage, ...]:
    """Returns the messages at `path` in the request: at most one system message, then the turns. Raises BadRequest.

    Several system messages at the beginning are joined by a blank line.
    """
    num_system = next((i for i, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages))
    parsed = [_parse_message(message, f"{path}[{i}]") for i, message in enumerate(messages)]
    for i, message in enumerate(messages[num_system:], num_system):
        if message.role in SYSTEM_ROLES:
            raise BadRequest("invalid_request", f"a {message.role} message must come first", f"{path}[{i}]")
    if messages[-1].role != "user":
        raise BadRequest("invalid_request", "the last message must be the user's", f"{path}[{len(messages) - 1}]")
    system = [ChatMessage("system", "\n\n".join(message.text for message in parsed[:num_system]))]
    return (*system[:num_system], *parsed[num_system:])


def _parse_message(message: Message, path: str) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    if not message.content and role == "user" and not isinstance(message.content, str):
        raise BadRequest("invalid_request", "a user message must have content", f"{path}.content")
    if message.content is None or isinstance(message.content, str):
        return ChatMessage(role, message.content or "")
    texts, images = [], []
    for i, part in enumerate(message.content):
        part_path = f"{path}.content[{i}]"
        _check_part(part, part_path)
        if part.image_url is not None:
            images.append(ImageSource(part.image_url.url, f"{part_path}.image_url.url"))
        elif part.text is not None:
            texts.append(part.text)
    if images and role != "user":
        raise BadRequest("invalid_request", "only user messages may have images", images[0].path)
    return ChatMessage(role, "\n".join(texts), tuple(images))


def _check_part(part: Part, path: str) -> None:
    has_text = part.text is not None if part.type == "text" else bool(part.text)
    if has_text != (part.type == "text") or (part.image_url is None) == (part.type == "image_url"):
        raise BadRequest("invalid_request", f"a part of type {part.type} must have {part.type} and nothing else", path)
