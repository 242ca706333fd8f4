"""A conversation as the body of a request and back. The body is also the format of exported conversations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .conversation import Message
from .images import data_uri, write_image
from .options import NO_TEMPLATE, Options

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def request_body(messages: Sequence[Message], options: Options) -> dict[str, Any]:
    """Returns the body of the request for the answer to the last message.

    It is OpenAI's chat completion. Without a template it is the service's own form with the last message as the prompt:
    a chat always has a template.
    """
    return _prompt_body(messages[-1], options) if options.template == NO_TEMPLATE else chat_body(messages, options)


def chat_body(messages: Sequence[Message], options: Options) -> dict[str, Any]:
    """Returns the messages and the options as OpenAI's chat completion."""
    system = [{"role": "system", "content": options.system}] if options.system else []
    return {"messages": [*system, *map(_openai_message, messages)], **options.parameters()}


def streamed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the body with the fields that make the service stream its answer, usage included."""
    if "messages" in body:
        return {**body, **STREAM}
    data = body["input_data"]
    return {"input_data": {**data, "parameters": {**data["parameters"], "stream": True}}}


def read_conversation(body: Any, folder: Path) -> tuple[list[Message], Options]:
    """Returns the messages and the options of a chat completion. Writes its images into `folder`.

    Raises ValueError if `body` is not one.
    """
    try:
        messages = list(body["messages"])
        system = "\n".join(str(message["content"]) for message in messages if message["role"] == "system")
        options = Options.from_json(body, system or None)
        return [_message(message, folder) for message in messages if message["role"] != "system"], options
    except (KeyError, TypeError, AttributeError):
        raise ValueError('a conversation is a JSON object with "messages", as this page exports it') from None


def _prompt_body(message: Message, options: Options) -> dict[str, Any]:
    values = options.parameters()
    if "max_tokens" in values:
        values["max_new_tokens"] = values.pop("max_tokens")
    data: dict[str, Any] = {"input_string": [message.text], "parameters": {**values, "return_full_text": False}}
    if message.images:
        data["images"] = [[data_uri(Path(path)) for path in message.images]]
    return {"input_data": data}


def _openai_message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    images = [{"type": "image_url", "image_url": {"url": data_uri(Path(path))}} for path in message.images]
    return {"role": message.role, "content": [*images, {"type": "text", "text": message.text}]}


def _message(message: Mapping[str, Any], folder: Path) -> Message:
    role, content = message["role"], message["content"]
    if role not in ("user", "assistant"):
        raise ValueError(f"a message has the role {role!r}; known are system, user and assistant")
    if isinstance(content, str):
        return Message(role, content)
    texts = [part["text"] for part in content if part["type"] == "text"]
    uris = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return Message(role, "\n".join(texts), tuple(str(write_image(uri, folder)) for uri in uris))
