"""A conversation, and its form in gradio's chatbot: a list of dictionaries, whose images are paths of files.

The chatbot also shows notes: figures and errors. A note has a title in its metadata and belongs to no conversation.
"""

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ChatbotMessage = dict[str, Any]
NoteStatus = Literal["pending", "done"]


@dataclass(frozen=True)
class Message:
    """One message. `images` are the paths of files; only the user's messages have images."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[str, ...] = ()


def conversation(chat: Sequence[ChatbotMessage]) -> list[Message]:
    """Returns the messages of a chatbot without notes. Leaves out a question that got no answer before the next one."""
    messages: list[Message] = []
    follows_note = True
    for shown in chat:
        if is_note(shown):
            follows_note = True
            continue
        message = _read(shown)
        if messages and message.role == messages[-1].role == "user":
            previous = messages.pop()
            message = message if follows_note else _joined(previous, message)
        messages.append(message)
        follows_note = False
    return messages


def question_start(chat: Sequence[ChatbotMessage], index: int) -> int:
    """Returns the index of the first part of the question whose last part is at `index`."""
    while index > 0 and chat[index - 1]["role"] == "user":
        index -= 1
    return index


def chatbot_messages(message: Message) -> list[ChatbotMessage]:
    """Returns the message in the chatbot's form: the images and the text apart.

    When a person edits a text, gradio drops all else from the same message.
    """
    images = [_image_part(path, f"image {number}") for number, path in enumerate(message.images, 1)]
    text = [{"type": "text", "text": message.text}] if message.text or not images else []
    return [{"role": message.role, "content": parts} for parts in (images, text) if parts]


def note(title: str, text: str, status: NoteStatus | None) -> ChatbotMessage:
    """Returns a note. Status "pending" shows a spinner, "done" folds the note, None leaves it open."""
    metadata = {"title": title} if status is None else {"title": title, "status": status}
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": metadata}


def is_pending(chat: Sequence[ChatbotMessage]) -> bool:
    """Returns whether an answer is being written."""
    return bool(chat) and (chat[-1].get("metadata") or {}).get("status") == "pending"


def is_note(shown: ChatbotMessage) -> bool:
    return bool((shown.get("metadata") or {}).get("title"))


def _image_part(path: str, alternative: str) -> dict[str, Any]:
    file = {"path": path, "mime_type": mimetypes.guess_type(path)[0], "meta": {"_type": "gradio.FileData"}}
    return {"type": "file", "file": file, "alt_text": alternative}


def _read(shown: ChatbotMessage) -> Message:
    parts = shown["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    images = [part["file"]["path"] for part in parts if part["type"] == "file"]
    return Message(shown["role"], "\n".join(texts), tuple(images))


def _joined(first: Message, second: Message) -> Message:
    return Message(first.role, "\n".join(filter(None, (first.text, second.text))), first.images + second.images)
