"""The events of a streamed answer for asyncio. A thread reads each stream, because the client's calls block."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ..client.endpoint import Endpoint


class TimedEvent(NamedTuple):
    """An event, and the seconds from the start of the request to its arrival."""

    seconds: float
    event: dict[str, Any]


# What the thread hands over: an event, or at the end an error or None.
Item = TimedEvent | Exception | None


async def stream_events(endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[list[TimedEvent], None]:
    """Yields the events that have arrived since the last yield. Raises EndpointError.

    Closing the generator ends the request, so that the service aborts the sequence. `endpoint` must serve no other
    request meanwhile.
    """
    loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()
    is_closed = threading.Event()

    def post(item: Item) -> None:
        with suppress(RuntimeError):  # the loop has ended together with the server
            loop.call_soon_threadsafe(items.put_nowait, item)

    threading.Thread(target=_read, args=(endpoint, body, post, is_closed), daemon=True).start()
    try:
        while True:
            arrived = [await items.get()]
            while not items.empty():
                arrived.append(items.get_nowait())
            if events := [item for item in arrived if isinstance(item, TimedEvent)]:
                yield events
            if isinstance(arrived[-1], Exception):
                raise arrived[-1]
            if arrived[-1] is None:
                return
    finally:
        is_closed.set()
        endpoint.abort()


def _read(endpoint: Endpoint, body: dict[str, Any], post: Callable[[Item], None], is_closed: threading.Event) -> None:
    """Posts the events of a stream and how it ended. Ends the stream once `is_closed` is set."""
    start = time.monotonic()
    stream = endpoint.stream(body)
    try:
        for event in stream:
            if is_closed.is_set():
                return
            post(TimedEvent(time.monotonic() - start, event))
        post(None)
    except Exception as error:
        post(error)
    finally:
        stream.close()
