"""Requests, responses and the TLS server between them."""

import http.client
import json
import re
import ssl
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class ApiError(Exception):
    """An error that the client gets as JSON in the form of Azure Resource Manager."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes
    base_url: str  # of this server

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass(frozen=True)
class Response:
    """A response. `body` is bytes, an iterator of bytes that is sent in chunks, or a value that is sent as JSON."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None  # called after the response is sent, or cannot be sent


Handler = Callable[..., Response]


class Routes:
    """Handlers by method and path. Names in braces in a path become arguments of the handler."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, template: str, handler: Handler) -> None:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
        self._routes.append((method, re.compile(pattern + "/?", re.IGNORECASE), handler))

    def __call__(self, request: Request) -> Response:
        for method, pattern, handler in self._routes:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return handler(request, **{name: unquote(value) for name, value in match.groupdict().items()})
        raise ApiError(404, "NotFound", f"the stand-in has no {request.method} {request.path}")


class _ClientDisconnected(Exception):
    """The client disconnected in the middle of a request's body."""


class Server(ThreadingHTTPServer):
    """A TLS server on localhost. Port 0 is a free port."""

    daemon_threads = True

    def __init__(self, handle: Callable[[Request], Response], certificate: Path, key: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.handle = handle
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # Each connection's own thread does the handshake, so that a silent client does not block other clients.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that do not trust the certificate or disconnect."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _respond(self) -> None:
        try:
            response = self.server.handle(self._request())
        except ApiError as error:
            response = _error_response(error)
        except _ClientDisconnected:
            self.close_connection = True
            return
        except Exception as error:
            traceback.print_exc()
            response = _error_response(ApiError(500, "InternalServerError", repr(error)))
        try:
            self._send(response)
        finally:
            response.close()

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        return Request(
            self.command,
            self.headers.get("Host", "").partition(":")[0],
            parts.path,
            {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()},
            self.headers,
            self._body(),
            self.server.url,
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := self._chunk_size():
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _chunk_size(self) -> int:
        line = self.rfile.readline().partition(b";")[0].strip()
        if not line:
            raise _ClientDisconnected
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
            self.close_connection = True
            raise ApiError(400, "BadRequest", "a chunk of the body has no valid size")
        return int(line, 16)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _respond

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        if isinstance(response.body, Iterator):
            self._send_headers({**response.headers, "Transfer-Encoding": "chunked"})
            self._send_chunks(response.body)
            return
        headers = dict(response.headers)
        body = _bytes(response.body, headers)
        headers.setdefault("Content-Length", str(len(body)))  # a response to HEAD already has the length of its blob
        self._send_headers(headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_chunks(self, chunks: Iterator[bytes]) -> None:
        try:
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):  # the client or the service closed its connection
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        return


def _error_response(error: ApiError) -> Response:
    body = {"error": {"code": error.code, "message": error.message}}
    return Response(error.status, body, {"x-ms-error-code": error.code, **error.headers})


def _bytes(body: Any, headers: dict[str, str]) -> bytes:
    """Returns the body's bytes. Adds the Content-Type of JSON to `headers`."""
    if body is None:
        return b""
    if isinstance(body, bytes):
        return body
    headers.setdefault("Content-Type", "application/json")
    return json.dumps(body).encode()
