"""The handle of one request: the caller's thread and the engine's thread meet here."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..errors import DeadlineExceeded, RequestError
from .completion import Completion, TokenLogprob

# A step may be under way at the deadline. The caller waits this much longer for the engine to end the request.
GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class TextDelta:
    """New text of one sequence, with the log-probabilities of the tokens since its last TextDelta."""

    prompt_index: int
    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...]


# A Completion is the last event of its sequence.
Event = TextDelta | Completion


class RequestHandle:
    """A request. The engine posts events, and the caller iterates over them.

    A request that is not `streaming` gets no TextDelta. `deadline` is in seconds of time.monotonic. `is_disconnected`
    returns whether the client has hung up; the engine calls it between steps, so it must not block.
    """

    def __init__(
        self,
        streaming: bool = False,
        deadline: float = math.inf,
        is_disconnected: Callable[[], bool] = lambda: False,
    ) -> None:
        self.streaming = streaming
        self.deadline = deadline
        self.is_disconnected = is_disconnected
        self.is_closed = False
        self._events: SimpleQueue[Event | RequestError] = SimpleQueue()
        self._num_unfinished = 0

    def expect(self, num_seqs: int) -> None:
        """Sets the number of sequences to wait for. The engine calls it when it admits the request."""
        self._num_unfinished = num_seqs

    def post(self, event: Event | RequestError) -> None:
        """Appends an event. The engine calls it; an error is the last event of the request."""
        self._events.put(event)

    def close(self) -> None:
        """Cancels the request: the engine ends its unfinished sequences within a step or two."""
        self.is_closed = True

    def __iter__(self) -> Iterator[Event]:
        """Yields events until every sequence has finished. Raises the RequestError that ended the request."""
        while self._num_unfinished:
            event = self._next()
            self._num_unfinished -= isinstance(event, Completion)
            yield event

    def result(self) -> list[Completion]:
        """Waits for all completions, and returns them by prompt and index. Raises as iteration does."""
        completions = [event for event in self if isinstance(event, Completion)]
        return sorted(completions, key=lambda completion: (completion.prompt_index, completion.index))

    def _next(self) -> Event:
        seconds = max(0.0, self.deadline - time.monotonic()) + GRACE_SECONDS
        try:
            event = self._events.get(timeout=None if math.isinf(seconds) else seconds)
        except Empty:
            self.close()
            raise DeadlineExceeded("deadline_exceeded", "the request was not finished in its time") from None
        if isinstance(event, RequestError):
            raise event
        return event
