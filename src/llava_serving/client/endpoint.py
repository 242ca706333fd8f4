"""One endpoint over HTTP: keys and tokens, retries that heed what the answer says, whole answers and streams."""

import http.client
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import urllib3

from ..events import events

# Azure's scope for scoring with a Microsoft Entra token.
ENTRA_RESOURCE = "https://ml.azure.com"
BUSY = (429, 503)
# Azure's own: the container answered with another status, which it tells in a header.
MODEL_ERROR, MODEL_STATUS = 424, "ms-azureml-model-error-statuscode"
LONGEST_WAIT = 60.0


class EndpointError(Exception):
    """The endpoint did not answer. `status` is None where there was no HTTP answer at all."""

    def __init__(self, status: int | None, code: str, message: str) -> None:
        super().__init__(
            f"{status or 'no answer'} {code}: {message}" if code else f"{status or 'no answer'}: {message}"
        )
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
    """`token` is the endpoint's key, or what returns a Microsoft Entra token. `timeout` in seconds, for each try."""

    url: str
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    deployment: str | None = None  # one of the endpoint's, past its traffic rules
    timeout: float = 180.0
    retries: int = 4
    _pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False), repr=False)

    def score(self, body: dict[str, Any]) -> Answer:
        """The whole answer. Raises EndpointError, after `retries` more tries where the endpoint was busy."""
        response = self._send(body, "application/json")
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
            for event in events(_lines(response)):
                if "error" in event:
                    error = event["error"]
                    raise EndpointError(response.status, str(error.get("code", "")), str(error.get("message", "")))
                yield event
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise EndpointError(response.status, "", f"the stream was cut ({error})") from None
        finally:
            response.close()

    def _send(self, body: dict[str, Any], accept: str) -> urllib3.BaseHTTPResponse:
        for attempt in range(self.retries + 1):
            response = self._try(json.dumps(body).encode(), accept)
            if response.status == 200:
                return response
            error = _error(response)
            if attempt == self.retries or not _is_busy(response):
                raise error
            time.sleep(_wait(response, attempt))
        raise AssertionError("unreachable")

    def _try(self, body: bytes, accept: str) -> urllib3.BaseHTTPResponse:
        # Made anew for each request: Azure's SDK keeps one dictionary, and with it the last request's deployment.
        headers = {"Content-Type": "application/json", "Accept": accept}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token() if callable(self.token) else self.token}"
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
    """A Microsoft Entra token for scoring: azure-identity's where it is installed, else the Azure CLI's."""
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        if shutil.which("az") is None:
            raise EndpointError(None, "", "a Microsoft Entra token takes azure-identity or the Azure CLI") from None
    else:
        token: str = DefaultAzureCredential().get_token(f"{ENTRA_RESOURCE}/.default").token
        return token
    command = ["az", "account", "get-access-token", "--resource", ENTRA_RESOURCE, "--query", "accessToken", "-o", "tsv"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise EndpointError(None, "", f"az gave no token: {run.stderr.strip()}")
    return run.stdout.strip()


def _is_busy(response: urllib3.BaseHTTPResponse) -> bool:
    """Worth another try: the instance's own status, told through Azure's 424, counts like one of the endpoint."""
    if response.status == MODEL_ERROR:
        return response.headers.get(MODEL_STATUS, "") in map(str, BUSY)
    return response.status in BUSY


def _wait(response: urllib3.BaseHTTPResponse, attempt: int) -> float:
    """Seconds: as the answer says, else longer each time, and never all callers at once."""
    told = response.headers.get("Retry-After", "")
    if told.isdecimal():
        return min(float(told), LONGEST_WAIT)
    return min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _error(response: urllib3.BaseHTTPResponse) -> EndpointError:
    """What the body says, in this service's shape or the platform's."""
    try:
        text = response.data.decode("utf-8", "replace")
    except urllib3.exceptions.HTTPError:
        text = ""
    try:
        content = json.loads(text)
        told = content.get("error", content)
        return EndpointError(response.status, str(told.get("code", "")), str(told.get("message", text)))
    except (ValueError, AttributeError):
        return EndpointError(response.status, "", text[:500] or response.reason or "")


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    left = b""
    for part in response.stream(2**16):
        *whole, left = (left + part).split(b"\n")
        yield from whole
