"""Answers as they are made: server-sent events (WHATWG HTML, section 9.2), in the service's own shape or OpenAI's.

data: {"row": 0, "0": " a red"}                                     new text of sequence 0 of row 0
data: {"row": 0, "index": 0, "finish_reason": "stop", "usage": {}}  the end of that sequence
data: [DONE]

event: error                                                        an error after the first event
data: {"error": {"code": "...", "message": "...", "param": null}}
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..engine.completion import Completion
from ..engine.request import Event, RequestHandle, SequenceEnd, TextDelta
from ..errors import ClientClosed, RequestError
from .connection import Connection
from .request import ScoreRequest
from .response import AnswerText, HttpResponse, completion_head, error_body, logprobs_body, refusal, to_json, usage

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx, which stands before the server in Azure's images
}
DONE = b"data: [DONE]\n\n"
# A caller who does not read what he is sent holds a thread for nothing.
STALL_SECONDS = 30.0
# What became of a stream: its completions so far by (row, index), and the error that ended it, if one did.
Told = Callable[[dict[tuple[int, int], Completion], RequestError | None], None]


class Chunks(Protocol):
    """How events are shown."""

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]: ...

    def end(self, end: SequenceEnd) -> Iterator[dict[str, Any]]: ...

    def finish(self) -> Iterator[dict[str, Any]]: ...


def stream_response(
    request: ScoreRequest, generation: RequestHandle, connection: Connection, told: Told
) -> HttpResponse:
    """Waits for the first event, so that what goes wrong before it still has its own status; then streams.

    `told` is called once, at the end, whichever it is. Raises RequestError.
    """
    events = iter(generation)
    first = next(events)
    if isinstance(first, SequenceEnd) and (error := refusal([first.completion])):
        raise error
    shown: Chunks = _ChatCompletionChunks(request) if request.form == "chat_completion" else _RowChunks(request)
    return HttpResponse(
        200, HEADERS, EventStream(itertools.chain([first], events), generation, shown, connection, told)
    )


class EventStream:
    """The body of a streamed answer: an object, since a generator that was never begun cannot be closed."""

    def __init__(
        self, events: Iterator[Event], generation: RequestHandle, chunks: Chunks, connection: Connection, told: Told
    ) -> None:
        self._events = events
        self._generation = generation
        self._chunks = chunks
        self._connection = connection
        self._told: Told | None = told
        self._completions: dict[tuple[int, int], Completion] = {}

    def __iter__(self) -> Iterator[bytes]:
        with self._connection.patience(STALL_SECONDS):
            try:
                for event in self._events:
                    yield from self._shown(event)
                for chunk in self._chunks.finish():
                    yield _data(chunk)
                yield DONE
            except RequestError as error:
                yield b"event: error\n" + _data(error_body(error))
                self._end(error)
            else:
                self._end(refusal(self._completions.values()))

    def close(self) -> None:
        """Ends what is still being generated, and waits the step or two that takes: what was done is written down."""
        if self._told is None:
            return
        self._generation.close()
        with contextlib.suppress(RequestError):
            for event in self._generation:
                self._note(event)
        self._end(ClientClosed("client_closed", "the caller left before the end"))

    def _note(self, event: Event) -> None:
        if isinstance(event, SequenceEnd):
            self._completions[event.row, event.index] = event.completion

    def _shown(self, event: Event) -> Iterator[bytes]:
        self._note(event)
        chunks = self._chunks.delta(event) if isinstance(event, TextDelta) else self._chunks.end(event)
        for chunk in chunks:
            yield _data(chunk)

    def _end(self, error: RequestError | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(self._completions, error)


class _RowChunks:
    """The service's own shape."""

    def __init__(self, request: ScoreRequest) -> None:
        self._texts = _texts(request)

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        if text := self._texts[delta.row, delta.index].push(delta.text):
            yield {"row": delta.row, str(delta.index): text}

    def end(self, end: SequenceEnd) -> Iterator[dict[str, Any]]:
        if text := self._texts[end.row, end.index].flush():
            yield {"row": end.row, str(end.index): text}
        yield {
            "row": end.row,
            "index": end.index,
            "finish_reason": end.completion.finish_reason,
            "usage": usage([end.completion]),
        }

    def finish(self) -> Iterator[dict[str, Any]]:
        return iter(())


class _ChatCompletionChunks:
    """OpenAI's chat.completion.chunk."""

    def __init__(self, request: ScoreRequest) -> None:
        self._request = request
        self._texts = _texts(request)
        self._head = completion_head(request, "chat.completion.chunk")
        self._begun: set[int] = set()
        self._completions: list[Completion] = []

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        text = self._texts[delta.row, delta.index].push(delta.text)
        logprobs = logprobs_body(self._request, delta.logprobs)
        if text or delta.logprobs:
            yield from self._role(delta.index)
            yield self._chunk(delta.index, {"content": text}, None, logprobs)

    def end(self, end: SequenceEnd) -> Iterator[dict[str, Any]]:
        self._completions.append(end.completion)
        yield from self._role(end.index)
        yield self._chunk(end.index, {}, end.completion.finish_reason)

    def finish(self) -> Iterator[dict[str, Any]]:
        if self._request.include_usage:
            yield self._head | {"choices": [], "usage": usage(self._completions)}

    def _role(self, index: int) -> Iterator[dict[str, Any]]:
        """The role comes first, once."""
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._request.include_usage else {})


def _texts(request: ScoreRequest) -> dict[tuple[int, int], AnswerText]:
    return {
        (row, index): AnswerText(prompt, echo)
        for row, (prompt, echo) in enumerate(zip(request.prompts, request.echo, strict=True))
        for index in range(request.parameters.n)
    }


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"
