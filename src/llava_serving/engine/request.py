"""A request in the engine, as the thread that waits for its answer sees it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..errors import DeadlineExceeded, RequestError
from .completion import Completion, TokenLogprob


@dataclass(frozen=True)
class TextDelta:
    """New text of sequence `index` of prompt `row`, with the logprobs of the tokens since the last."""

    row: int
    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class SequenceEnd:
    """The last event of a sequence."""

    row: int
    index: int
    completion: Completion


Event = TextDelta | SequenceEnd
# How long after its deadline a request waits for the engine to say so: a step may be under way.
GRACE_SECONDS = 2.0


class RequestHandle:
    """The sequences of one request: `sizes` counts those of each prompt.

    Without `streaming` there are no TextDeltas. `deadline` is in seconds of time.monotonic; `gone` tells that nobody
    waits any more (asked by the engine between steps, so it must not block).
    """

    def __init__(
        self,
        sizes: list[int],
        streaming: bool = False,
        deadline: float = math.inf,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sizes = sizes
        self.streaming = streaming
        self.deadline = deadline
        self.gone = gone
        self.closed = False
        self._events: SimpleQueue[Event | RequestError] = SimpleQueue()
        self._num_open = sum(sizes)

    def post(self, event: Event | RequestError) -> None:
        """By the engine: what happened to the request. An error is the last that does."""
        self._events.put(event)

    def close(self) -> None:
        """Nobody waits any more: what is not finished is ended as cancelled, in a step or two."""
        self.closed = True

    def __iter__(self) -> Iterator[Event]:
        """The events until every sequence has ended; raises the RequestError that ended the request."""
        while self._num_open:
            event = self._next()
            self._num_open -= isinstance(event, SequenceEnd)
            yield event

    def result(self) -> list[list[Completion]]:
        """The completions of each prompt, waited for; raises the RequestError that ended the request."""
        completions: dict[tuple[int, int], Completion] = {}
        for event in self:
            if isinstance(event, SequenceEnd):
                completions[event.row, event.index] = event.completion
        return [[completions[row, index] for index in range(size)] for row, size in enumerate(self.sizes)]

    def _next(self) -> Event:
        patience = max(0.0, self.deadline - time.monotonic()) + GRACE_SECONDS
        try:
            event = self._events.get(timeout=None if math.isinf(patience) else patience)
        except Empty:
            self.close()
            raise DeadlineExceeded("deadline_exceeded", "the request was not finished in its time") from None
        if isinstance(event, RequestError):
            raise event
        return event
