"""One endpoint over HTTP: keys and tokens, retries that heed what the answer says, whole answers and streams."""

import functools
import http.client
import json
import logging
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3

from ..events import events

logger = logging.getLogger(__name__)
# Where the commands look for a key, so that no process list shows it.
KEY_VARIABLE = "AZUREML_ENDPOINT_KEY"
# Azure's scope for scoring with a Microsoft Entra token.
ENTRA_SCOPE = "https://ml.azure.com/.default"
BUSY = (429, 503)
# Azure's own: the container answered with another status, which it tells in a header.
MODEL_ERROR, MODEL_STATUS = 424, "ms-azureml-model-error-statuscode"
LONGEST_WAIT = 60.0  # seconds; who is told to wait longer gets the error
LONGEST_TIMEOUT = 86_400.0  # seconds


class EndpointError(Exception):
    """The endpoint did not answer. `status` is the service's own where Azure answers 424 for it, and None where there
    was none: no connection, or a stream that ended with an error."""

    def __init__(self, status: int | None, code: str, message: str) -> None:
        told = " ".join(filter(None, (str(status or ""), code)))
        super().__init__(f"{told}: {message}" if told else message)
        self.status = status
        self.code = code
        self.message = message


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
        object.__setattr__(self, "_pool", _pool(self.url))

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
                if not isinstance(event, dict):
                    raise ValueError(f"{event!r} is no event")
                if "error" in event:
                    raise _told(None, event["error"], json.dumps(event["error"]))
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
            error = _error(response, self.url)
            if attempt == self.retries or _status(response) not in BUSY:
                raise error
            seconds = _wait(response, attempt)
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


def entra_token() -> str:
    """A Microsoft Entra token for scoring, of whatever login azure-identity finds: the environment's, a managed
    identity's, `az login`'s. Raises EndpointError."""
    # Here, so that a key takes no azure-identity, which comes with Azure's server.
    from azure.core.exceptions import AzureError

    try:
        token: str = _credential().get_token(ENTRA_SCOPE).token
    except AzureError as error:
        why = str(error).strip().splitlines()[0]
        raise EndpointError(None, "", f"there is no Microsoft Entra token, `az login` gets one: {why}") from None
    return token


@functools.cache
def _credential() -> Any:
    """It remembers its token until that expires."""
    from azure.identity import DefaultAzureCredential

    logging.getLogger("azure.identity").setLevel(logging.ERROR)  # tells at length of every login that there is not
    return DefaultAzureCredential()


def _is_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _status(response: urllib3.BaseHTTPResponse) -> int:
    """The service's own where Azure tells it."""
    own = response.headers.get(MODEL_STATUS, "")
    return int(own) if response.status == MODEL_ERROR and own.isdecimal() else response.status


def _wait(response: urllib3.BaseHTTPResponse, attempt: int) -> float:
    """Seconds: as the answer says, else longer each time, and never all callers at once."""
    try:
        if (told := response.headers.get("Retry-After")) is not None:
            return urllib3.Retry().parse_retry_after(told)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        pass
    return min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _error(response: urllib3.BaseHTTPResponse, url: str) -> EndpointError:
    """What the body says, in this service's shape or the platform's."""
    hint = "" if urlsplit(url).path.rstrip("/") else " (a scoring URI ends in /score)"
    try:
        text = response.data.decode("utf-8", "replace")
    except urllib3.exceptions.HTTPError:
        text = ""
    try:
        content = json.loads(text)
        error = _told(_status(response), content.get("error", content), text)
    except (ValueError, AttributeError):
        error = EndpointError(_status(response), "", text[:500] or response.reason or "")
    return EndpointError(error.status, error.code, error.message + hint) if hint else error


def _told(status: int | None, error: Any, text: str) -> EndpointError:
    """An error in this service's shape, or in another: `text`."""
    if not isinstance(error, dict):
        return EndpointError(status, "", text)
    return EndpointError(status, str(error.get("code", "")), str(error.get("message", text)))


def _is_stream(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _pool(url: str) -> urllib3.PoolManager:
    """Through the proxy that the environment names for that URL, if it does."""
    parts = urlsplit(url)
    proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)
    return urllib3.ProxyManager(proxy, retries=False) if proxy else urllib3.PoolManager(retries=False)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    left = b""
    for part in response.stream(2**16):
        *whole, left = (left + part).split(b"\n")
        yield from whole
    yield left
