"""One answer while it arrives: its text so far, and the note below it. Asks again while the endpoint is busy."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ..client.endpoint import Endpoint
from ..client.endpoint_error import EndpointError
from ..client.retry_delay import retry_delay
from .event_stream import stream_events
from .figures import Figures

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

    A request that a busy endpoint or a gateway refused is sent again until there is an answer or until this generator
    is closed. The wait is visible, so the client itself does not retry. A connection that fails ends the answer: the
    endpoint may not run at all, and the person who sees the error can ask again.
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
            if not error.is_transient or error.status is None:
                yield _failed(text, error)
                return
            seconds = math.ceil(retry_delay(attempt, error.retry_after))
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
