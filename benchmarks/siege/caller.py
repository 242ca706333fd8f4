"""Sends one request over HTTP, stays until its end, and records its outcome."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from .ledger import ANSWERED, LOST, REFUSED, TOLD, Ledger

# Longer than the service's own limit, so that a request without an answer is lost and not late.
TIMEOUT_SECONDS = 190.0
JSON_HEADERS = {"Content-Type": "application/json"}
BUSY = (429, 503)
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Request:
    """`expected` are the statuses that the contract allows. Under load 429 and 503 are allowed too."""

    body: bytes
    path: str = "/score"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_HEADERS)
    stream: bool = False
    expected: frozenset[int] = frozenset({200})
    name: str = "a good request"


@dataclass(frozen=True)
class Answer:
    """`status` is 0 without an answer. `seconds` is the time from the connection to the last byte."""

    status: int
    body: bytes
    seconds: float
    retry_after: int | None = None


class Caller:
    """Sends one request after the other. With `keep_alive` they share a connection as long as the server keeps it."""

    def __init__(self, port: int, ledger: Ledger, keep_alive: bool = False, timeout: float = TIMEOUT_SECONDS) -> None:
        self._ledger = ledger
        self._keep_alive = keep_alive
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def send(self, request: Request, busy: bool = False) -> Answer:
        """`busy`: 429 and 503 are expected."""
        self._ledger.offer()
        started = time.monotonic()
        try:
            response = self._response(request)
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._ledger.record(LOST, type(error).__name__)
            return Answer(0, b"", time.monotonic() - started)
        if not self._keep_alive:
            self._connection.close()
        outcome, detail, expected = judge(request, response.status, body)
        self._ledger.record(outcome, detail, not (expected or (busy and response.status in BUSY)))
        retry_after = response.headers.get("Retry-After")
        return Answer(response.status, body, time.monotonic() - started, int(retry_after) if retry_after else None)

    def close(self) -> None:
        self._connection.close()

    def _response(self, request: Request) -> http.client.HTTPResponse:
        reused = self._connection.sock is not None
        try:
            return self._exchange(request)
        except (http.client.RemoteDisconnected, ConnectionError):
            if not reused:
                raise
            self._connection.close()  # the server has closed an idle connection: every HTTP client sends again
            return self._exchange(request)

    def _exchange(self, request: Request) -> http.client.HTTPResponse:
        try:
            self._connection.request(request.method, request.path, request.body, dict(request.headers))
        except (BrokenPipeError, ConnectionResetError):
            if self._connection.sock is None:
                raise
            # The server may have answered before the whole body was sent. http.client reads only after a whole request.
            response = http.client.HTTPResponse(self._connection.sock, method=request.method)
            response.begin()
            self._connection.close()  # the next request needs a new one; the response still reads from this one
            return response
        return self._connection.getresponse()


def judge(request: Request, status: int, body: bytes) -> tuple[str, str, bool]:
    """Returns the outcome of an answer, its detail, and whether the contract allows it."""
    expected = status in request.expected
    detail = str(status) if expected or status in BUSY else f"{status} for {request.name}"
    if status == 200 and request.stream:
        if b"event: error\n" in body:
            return TOLD, "an error event", False
        return (ANSWERED, detail, expected) if body.endswith(DONE) else (LOST, "a stream without its end", True)
    if status == 200:
        return (ANSWERED, detail, expected) if _is_json(body) else (LOST, "an answer that is no JSON", True)
    return (TOLD if status >= 500 and status != 503 else REFUSED), detail, expected


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
