"""One endpoint over HTTP: whole answers and streams, and another try where it is busy."""

import http.client
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import urllib3

from .access import connections
from .endpoint_error import LONGEST_WAIT, EndpointError, refusal, told, wait
from .server_sent_events import events

logger = logging.getLogger(__name__)
BUSY = (429, 503)
LONGEST_TIMEOUT = 86_400.0  # seconds


@dataclass(frozen=True)
class Answer:
    """`body` is the JSON in the request's own form; `headers` hold usage and times (`x-llava-...`), in lower case."""

    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """`token` is the endpoint's key, or what returns a Microsoft Entra token. `timeout` is the longest silence of the
    endpoint in a try, in seconds.

    Raises ValueError for a URL, deployment, timeout or number of retries that cannot be.
    """

    url: str
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    deployment: str | None = None  # one of the endpoint's, past its traffic rules
    timeout: float = 180.0
    retries: int = 4
    _pool: urllib3.PoolManager = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.lower().startswith(("http://", "https://")):
            raise ValueError(f"{self.url} is no URL: it begins with https:// or http://")
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(f"a timeout is more than 0 s and at most {LONGEST_TIMEOUT:.0f}, not {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"there are 0 retries or more, not {self.retries}")
        if self.deployment is not None and not _is_header(self.deployment):
            raise ValueError(f"{self.deployment!r} is no deployment's name")
        object.__setattr__(self, "_pool", connections(self.url))

    def score(self, body: dict[str, Any]) -> Answer:
        """The whole answer. Raises EndpointError, after `retries` more tries where the endpoint was busy."""
        response = self._send(body, "application/json")
        if _is_stream(response):
            response.close()
            raise EndpointError(
                response.status, "", "the body asks for a stream, and so is the answer: --stream, stream()"
            )
        try:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(json.loads(response.data), headers)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise EndpointError(response.status, "", f"the answer was cut or is no JSON ({error})") from None

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer as they come. Raises EndpointError, also for an error among the events.

        Closing the iterator ends the answer: the service gives the sequence's place to others.
        """
        response = self._send(body, "text/event-stream")
        try:
            if not _is_stream(response):
                raise EndpointError(response.status, "", "the endpoint did not stream its answer")
            for event in events(_lines(response)):
                if "error" in event:
                    raise EndpointError(None, *told(event["error"], str(event["error"])))
                yield event
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise EndpointError(None, "", f"the stream was cut ({error})") from None
        finally:
            response.close()

    def _send(self, body: dict[str, Any], accept: str) -> urllib3.BaseHTTPResponse:
        for attempt in range(self.retries + 1):
            response = self._try(json.dumps(body).encode(), accept)
            if response.status == 200:
                return response
            error = refusal(response, self.url)
            if attempt == self.retries or error.status not in BUSY:
                raise error
            seconds = wait(response, attempt)
            if seconds > LONGEST_WAIT:
                raise EndpointError(error.status, error.code, f"{error.message} (come again in {seconds:.0f} s)")
            logger.warning("%s; asked again in %.0f s", error, seconds)
            time.sleep(seconds)
        raise AssertionError("unreachable")

    def _try(self, body: bytes, accept: str) -> urllib3.BaseHTTPResponse:
        # Made anew for each request: Azure's SDK keeps one dictionary, and with it the last request's deployment.
        headers = {"Content-Type": "application/json", "Accept": accept}
        if self.token is not None:
            token = (self.token() if callable(self.token) else self.token).strip()
            if not _is_header(token):
                raise EndpointError(None, "", "the key has characters that no key has")
            headers["Authorization"] = f"Bearer {token}"
        if self.deployment is not None:
            headers["azureml-model-deployment"] = self.deployment
        try:
            return self._pool.request(
                "POST",
                self.url,
                body=body,
                headers=headers,
                timeout=self.timeout,
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise EndpointError(None, "", f"{self.url}: {error}") from None


def _is_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _is_stream(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    left = b""
    for part in response.stream(2**16):
        *whole, left = (left + part).split(b"\n")
        yield from whole
    yield left
