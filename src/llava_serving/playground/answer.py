"""One answer while it arrives: its text so far, and the note below it. Asks again while the endpoint is busy."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ..client.endpoint import BUSY_STATUSES, Endpoint
from ..client.endpoint_error import EndpointError
from .event_stream import stream_events
from .figures import Figures

MAX_RETRY_SECONDS = 10
WAITING = "Waiting for the first token"


@dataclass(frozen=True)
class Progress:
    """`text` is None as long as there is no answer. `title` and `details` are the note below it."""

    text: str | None
    title: str
    details: str = ""
    is_final: bool = False
    is_error: bool = False


async def answer_progress(endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Progress, None]:
    """Yields the progress of one answer, the last one with `is_final`.

    A busy endpoint is asked again until it answers or until this generator is closed. The wait is visible, so the
    client itself does not retry.
    """
    attempt = 0
    while True:
        text: str | None = None
        try:
            # Each attempt has an endpoint of its own, because abort() ends all requests of an endpoint.
            async with aclosing(_stream(replace(endpoint, retries=0), body)) as stream:
                async for progress in stream:
                    text = progress.text
                    yield progress
            return
        except EndpointError as error:
            if error.status not in BUSY_STATUSES:
                yield _failed(text, error)
                return
            seconds = _retry_seconds(error, attempt)
            for remaining in range(seconds, 0, -1):
                yield Progress(
                    None, f"The service is busy: next attempt in {remaining} s", f"{error}. Stop ends the wait."
                )
                await asyncio.sleep(1)
            attempt += 1


async def _stream(endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Progress, None]:
    figures, text = Figures(), ""
    yield Progress(None, WAITING)
    async with aclosing(stream_events(endpoint, body)) as batches:
        async for events in batches:
            text += "".join(figures.add(event, seconds) for seconds, event in events)
            yield Progress(text, figures.summary() or WAITING)
    yield Progress(text, figures.summary(), figures.details(), is_final=True)


def _failed(text: str | None, error: EndpointError) -> Progress:
    """Returns the end of an answer that failed, in the service's own words."""
    title = " ".join(["No answer:", *filter(None, (str(error.status or ""), error.code))]).removesuffix(":")
    return Progress(text, title, error.message, is_final=True, is_error=True)


def _retry_seconds(error: EndpointError, attempt: int) -> int:
    """Returns the endpoint's own time, or else a time that doubles with each attempt."""
    return min(MAX_RETRY_SECONDS, 1 << attempt) if error.retry_after is None else math.ceil(error.retry_after)
