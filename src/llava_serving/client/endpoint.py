"""An endpoint over HTTP: complete answers, streamed answers, and further attempts after transient failures."""

import http.client
import json
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection

from .connection_pool import connection_pool, cut, track_connections
from .endpoint_error import EndpointError, code_and_message, error_from_response
from .retry_delay import retry_delay
from .server_sent_events import events
from .transient_failures import is_transient_connection_error

logger = logging.getLogger(__name__)
MAX_TIMEOUT_SECONDS = 86_400.0


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    `body` is the JSON in the form of the request. `headers` have lower-case names and hold usage and times
    (`x-llava-...`).
    """

    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of the service.

    `token` is the endpoint's key, or a function that returns a Microsoft Entra token. `timeout` is in seconds: the
    longest time in which the endpoint sends nothing, for each attempt.

    After a transient failure (transient_failures.py says which ones are) a request is sent again: at most `retries`
    times, and not later than `retry_seconds` after the first attempt. Nothing is sent again once a response has begun.

    Raises ValueError for an invalid URL, deployment, timeout, number of retries or time for them.
    """

    url: str
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    deployment: str | None = None  # the deployment that answers, whatever the endpoint's traffic rules say
    timeout: float = 180.0
    retries: int = 4
    retry_seconds: float = 120.0
    _pool: urllib3.PoolManager = field(init=False, repr=False, compare=False)
    _connections: "weakref.WeakSet[HTTPConnection]" = field(init=False, repr=False, compare=False)
    _aborts: set[threading.Event] = field(init=False, repr=False, compare=False, default_factory=set)

    def __post_init__(self) -> None:
        if not self.url.lower().startswith(("http://", "https://")):
            raise ValueError(f"{self.url} is not a URL that begins with https:// or http://")
        if "@" in urlsplit(self.url).netloc:
            raise ValueError("the URL holds a user or a password, which messages would repeat: leave it out")
        if not 0 < self.timeout <= MAX_TIMEOUT_SECONDS:
            raise ValueError(f"the timeout must be over 0 s and at most {MAX_TIMEOUT_SECONDS:.0f}, not {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"the number of retries must be 0 or more, not {self.retries}")
        if not 0 <= self.retry_seconds < math.inf:
            raise ValueError(f"the time for retries must be 0 s or more, not {self.retry_seconds}")
        if self.deployment is not None and not _is_header(self.deployment):
            raise ValueError(f"{self.deployment!r} is not a deployment name")
        object.__setattr__(self, "_pool", connection_pool(self.url))
        object.__setattr__(self, "_connections", track_connections(self._pool.connection_from_url(self.url)))

    def score(self, body: dict[str, Any]) -> Answer:
        """Returns the complete answer. Raises EndpointError, of the last attempt if there were several."""
        response = self._send(body, "application/json")
        if _is_stream(response):
            response.close()
            raise EndpointError(
                response.status, "", "the body asks for a stream: use --stream, or stream() instead of score()"
            )
        try:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(json.loads(response.data), headers)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise EndpointError(response.status, "", f"the answer is incomplete or not JSON ({error})") from None

    def stream(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yields the events of a streamed answer as they arrive.

        Raises EndpointError, also when an event holds an error. To end the answer early, close the generator: the
        service then aborts the sequences.
        """
        response = self._send(body, "text/event-stream")
        try:
            if not _is_stream(response):
                raise EndpointError(response.status, "", "the endpoint did not stream its answer")
            for event in events(response):
                if "error" in event:
                    raise EndpointError(None, *code_and_message(event["error"], str(event["error"])))
                yield event
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise EndpointError(None, "", f"the stream was cut ({error})") from None
        finally:
            response.close()

    def abort(self) -> None:
        """Cuts the connections of this endpoint and ends the waits for a next attempt.

        This is for another thread than those that wait: they then get EndpointError. The service
        aborts the sequences of the cut requests.
        """
        for event in list(self._aborts):
            event.set()
        for connection in list(self._connections):
            cut(connection)

    def _send(self, body: dict[str, Any], accept: str) -> urllib3.BaseHTTPResponse:
        """Returns the response with status 200. Raises EndpointError."""
        encoded, attempt, last_start = json.dumps(body).encode(), 0, time.monotonic() + self.retry_seconds
        aborted = threading.Event()
        self._aborts.add(aborted)
        try:
            while True:
                try:
                    return self._post(encoded, accept)
                except EndpointError as error:
                    if aborted.is_set() or not error.is_transient or attempt == self.retries:
                        raise
                    seconds = _seconds_until_retry(error, attempt, last_start)
                    logger.warning("%s; attempt %d of %d in %.1f s", error, attempt + 2, self.retries + 1, seconds)
                    if aborted.wait(seconds):
                        raise
                attempt += 1
        finally:
            self._aborts.discard(aborted)

    def _post(self, body: bytes, accept: str) -> urllib3.BaseHTTPResponse:
        """Sends the request once. Returns the response with status 200, or raises EndpointError."""
        try:
            response = self._pool.request(
                "POST",
                self.url,
                body=body,
                headers=self._headers(accept),
                timeout=self.timeout,
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            is_transient = is_transient_connection_error(error)
            raise EndpointError(None, "", f"{self.url}: {error}", is_transient=is_transient) from None
        if response.status != 200:
            raise error_from_response(response, self.url)
        return response

    def _headers(self, accept: str) -> dict[str, str]:
        """Returns a new dictionary for each request.

        Azure's SDK shares one dictionary, so that a request carries the deployment name of the request before it.
        """
        headers = {"Content-Type": "application/json", "Accept": accept}
        if self.token is not None:
            token = (self.token() if callable(self.token) else self.token).strip()
            if not _is_header(token):
                raise EndpointError(None, "", "the key has characters that are not printable ASCII")
            headers["Authorization"] = f"Bearer {token}"
        if self.deployment is not None:
            headers["azureml-model-deployment"] = self.deployment
        return headers


def _seconds_until_retry(error: EndpointError, attempt: int, last_start: float) -> float:
    """Returns the seconds until the next attempt. Raises `error` if that would begin after `last_start`."""
    seconds = retry_delay(attempt, error.retry_after)
    remaining = last_start - time.monotonic()
    if error.retry_after is not None and error.retry_after > remaining:
        message = f"{error.message} (retry in {error.retry_after:.0f} s)"
        raise EndpointError(error.status, error.code, message, error.retry_after, is_transient=True) from None
    if seconds > remaining:
        raise error
    return seconds


def _is_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _is_stream(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")
