"""What the page does when something happens on it. Each handler takes the chatbot's messages and returns new ones."""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..client.endpoint import Endpoint
from .answer import WAITING, Progress, answer_progress
from .code_samples import Target, curl_command, json_body, python_program
from .conversation import (
    ChatbotMessage,
    Message,
    NoteStatus,
    chatbot_messages,
    conversation,
    is_note,
    is_pending,
    note,
    question_start,
)
from .options import Options
from .request_body import chat_body, read_conversation, request_body, streamed

Chat = list[ChatbotMessage]
# New values of the chatbot and of the textbox.
Update = tuple[Chat, Any]


@dataclass(frozen=True)
class Handlers:
    """The handlers of one page. `folder` holds images of imported conversations, and exported conversations."""

    endpoint: Endpoint
    target: Target
    folder: Path

    def submit(self, question: dict[str, Any], chat: Chat) -> Update:
        """Adds the question of the textbox."""
        message = Message("user", (question["text"] or "").strip(), tuple(question["files"]))
        if not message.text and not message.images:
            raise _error("Type a question or attach an image first.")
        _check_not_pending(chat)
        return _asked(chat, message, value=None)

    def submit_example(self, example: gr.SelectData) -> Update:
        """Begins a conversation with the question of an example."""
        files = tuple(file["path"] for file in example.value.get("files", []))
        return _asked([], Message("user", example.value["text"], files))

    def regenerate(self, event: gr.RetryData, chat: Chat) -> Update:
        """Asks a question again, and drops everything after it."""
        _check_not_pending(chat)
        before, question = _split(chat, event)
        return _asked(before, question)

    def resend(self, event: gr.EditData, chat: Chat) -> Update:
        """Asks an edited question with the images it had, and drops everything after it."""
        _check_not_pending(chat)
        before, question = _split(chat, event)
        return _asked(before, replace(question, text=str(event.value).strip()))

    def undo(self, event: gr.UndoData, chat: Chat) -> Update:
        """Takes the last question back into the textbox, with its images."""
        _check_not_pending(chat)
        before, question = _split(chat, event)
        return before, _textbox(value={"text": question.text, "files": list(question.images)})

    async def answer(self, chat: Chat, *options: Any) -> AsyncGenerator[Update, None]:
        """Yields updates until the last question is answered."""
        asked = chat[:-1]  # without the pending note
        body = streamed(request_body(conversation(asked), Options.from_page(*options)))
        async with aclosing(answer_progress(self.endpoint, body)) as steps:
            async for progress in steps:
                yield [*asked, *_shown(progress)], _textbox() if progress.is_final else gr.skip()

    def stop(self, chat: Chat) -> Update:
        """Marks a pending answer as stopped."""
        if is_pending(chat):
            has_text = not is_note(chat[-2]) and chat[-2]["role"] == "assistant"
            figures = f" · {chat[-1]['metadata']['title']}" if has_text else " before the first token"
            chat = [*chat[:-1], note(f"Stopped{figures}", "The answer was stopped here.", "done")]
        return chat, _textbox()

    def samples(self, chat: Chat, *options: Any) -> tuple[str, str, str, Any]:
        """Returns the last question as a curl command, a Python program and JSON, and the conversation as a file."""
        messages = conversation(chat)
        questions = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        if not questions:
            return "", "", "", gr.DownloadButton(interactive=False)
        body = request_body(questions, Options.from_page(*options))
        download = gr.DownloadButton(value=self._export(messages, Options.from_page(*options)), interactive=True)
        return curl_command(self.target, body), python_program(self.target, body), json_body(body), download

    def _export(self, messages: list[Message], options: Options) -> str:
        """Writes a conversation and returns the file's path, which is another one for each conversation."""
        content = json_body(chat_body(messages, options)).encode()
        path = self.folder / hashlib.sha256(content).hexdigest()[:16] / "conversation.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def load(self, path: str) -> tuple[Any, ...]:
        """Returns the chatbot's messages and the options of an exported conversation."""
        try:
            messages, options = read_conversation(json.loads(Path(path).read_text("utf-8")), self.folder)
        except ValueError as error:
            raise _error(f"The file was not imported: {error}") from None
        return [shown for message in messages for shown in chatbot_messages(message)], *astuple(options)


def _asked(chat: Chat, question: Message, **textbox: Any) -> Update:
    """Returns the chat with a question and a pending note, and a textbox with a stop button."""
    return [*chat, *chatbot_messages(question), note(WAITING, "", "pending")], _textbox(is_busy=True, **textbox)


def _shown(progress: Progress) -> Chat:
    """Returns the messages below the question."""
    text = [] if progress.text is None else chatbot_messages(Message("assistant", progress.text))
    status: NoteStatus | None = None if progress.is_error else "done" if progress.is_final else "pending"
    return [*text, note(progress.title, progress.details, status)]


def _textbox(is_busy: bool = False, **properties: Any) -> Any:
    return gr.MultimodalTextbox(submit_btn=not is_busy, stop_btn=is_busy, **properties)


def _split(chat: Chat, event: Any) -> tuple[Chat, Message]:
    """Returns the messages before the question that an event is about, and the question."""
    # gradio gives the index of a message, or that and the index of a part of the message.
    index = int(event.index[0] if isinstance(event.index, list | tuple) else event.index)
    start = question_start(chat, index)
    return chat[:start], conversation(chat[start : index + 1])[0]


def _check_not_pending(chat: Chat) -> None:
    if is_pending(chat):
        raise _error("An answer is being written. Stop it first.")


def _error(message: str) -> Exception:
    error: Exception = gr.Error(message, print_exception=False)
    return error
