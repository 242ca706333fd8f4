"""Streamed answers: server-sent events (WHATWG HTML, section 9.2), in the service's own form or in OpenAI's.

data: {"row": 0, "0": " a red"}                                     new text of sequence 0 of prompt 0
data: {"row": 0, "index": 0, "finish_reason": "stop", "usage": {}}  the end of that sequence
data: [DONE]

event: error                                                        an error after the first event
data: {"error": {"code": "...", "message": "...", "param": null, "type": "server_error"}}
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..engine.completion import Completion
from ..engine.request_handle import Event, RequestHandle, TextDelta
from ..errors import ClientClosed, InternalError, RequestError
from .answer_text import AnswerText, answer_texts
from .http import HttpResponse
from .openai_response import ChatCompletionFormat, CompletionFormat, usage
from .response import completion_error, error_body, to_json
from .score_request import ScoreRequest

logger = logging.getLogger(__name__)
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # for nginx, which is in front of the server in Azure's images
}
STREAM_FAILED = "the service failed on this stream; its log says why"
DONE = b"data: [DONE]\n\n"
# Called at the end of a stream, with the completions so far and the error that ended the stream, if one did.
OnEnd = Callable[[Sequence[Completion], RequestError | None], None]


class EventFormat(Protocol):
    """Turns the engine's events into the JSON objects of a stream."""

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]: ...

    def end(self, completion: Completion) -> Iterator[dict[str, Any]]: ...

    def finish(self) -> Iterator[dict[str, Any]]: ...


def stream_response(request: ScoreRequest, handle: RequestHandle, on_end: OnEnd) -> HttpResponse:
    """Waits for the first event, so that an error before it has its own status; then streams.

    `on_end` is called exactly once if this function returns. Raises RequestError.
    """
    events = iter(handle)
    first = next(events)
    if isinstance(first, Completion) and (error := completion_error([first])):
        raise error
    body = EventStream(itertools.chain([first], events), handle, _event_format(request), on_end)
    return HttpResponse(200, HEADERS, body)


def _event_format(request: ScoreRequest) -> EventFormat:
    texts = answer_texts(request)
    if request.form == "chat_completion":
        return ChatCompletionFormat(request, texts)
    return CompletionFormat(request, texts) if request.form == "completion" else _ScoreFormat(texts)


class EventStream:
    """The body of a streamed answer.

    It is an object, because the server cannot close a generator that it has not begun.
    """

    def __init__(
        self,
        events: Iterator[Event],
        handle: RequestHandle,
        event_format: EventFormat,
        on_end: OnEnd,
    ) -> None:
        self._events = events
        self._handle = handle
        self._format = event_format
        self._on_end: OnEnd | None = on_end
        self._completions: list[Completion] = []

    def __iter__(self) -> Iterator[bytes]:
        try:
            for event in self._events:
                yield from self._render(event)
            for chunk in self._format.finish():
                yield _data(chunk)
            yield DONE
        except RequestError as error:
            yield from self._fail(error)
        except Exception:
            logger.exception("a stream failed")
            self._cancel()
            yield from self._fail(InternalError("internal_error", STREAM_FAILED))
        else:
            self._end(completion_error(self._completions))

    def close(self) -> None:
        """Cancels a stream that has not ended, and waits a step or two for its completions, which are then logged."""
        if self._on_end is None:
            return
        self._cancel()
        self._end(ClientClosed("client_closed", "the client disconnected before the end"))

    def _cancel(self) -> None:
        self._handle.close()
        with contextlib.suppress(RequestError):
            self._completions += (event for event in self._handle if isinstance(event, Completion))

    def _fail(self, error: RequestError) -> Iterator[bytes]:
        self._end(error)
        yield b"event: error\n" + _data(error_body(error))

    def _render(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Completion):
            self._completions.append(event)
            chunks = self._format.end(event)
        else:
            chunks = self._format.delta(event)
        for chunk in chunks:
            yield _data(chunk)

    def _end(self, error: RequestError | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self._completions, error)


class _ScoreFormat:
    """The service's own form."""

    def __init__(self, texts: dict[tuple[int, int], AnswerText]) -> None:
        self._texts = texts

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        if text := self._texts[delta.prompt_index, delta.index].push(delta.text):
            yield {"row": delta.prompt_index, str(delta.index): text}

    def end(self, completion: Completion) -> Iterator[dict[str, Any]]:
        prompt_index, index = completion.prompt_index, completion.index
        if text := self._texts[prompt_index, index].flush():
            yield {"row": prompt_index, str(index): text}
        yield {
            "row": prompt_index,
            "index": index,
            "finish_reason": completion.finish_reason,
            "usage": usage([completion]),
        }

    def finish(self) -> Iterator[dict[str, Any]]:
        return iter(())


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"
