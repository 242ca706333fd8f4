"""Reading a stream of server-sent events, as stream.py and OpenAI's servers write it."""

import http.client
import json
from collections.abc import Iterable, Iterator
from typing import Any


def events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of the events up to `[DONE]`. Raises ValueError for an event that is none, and IncompleteRead for a
    stream without its end, which was cut."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"{event!r} is no event")
        yield event
    raise http.client.IncompleteRead(b"")
