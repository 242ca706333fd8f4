"""Requests, answers and the TLS server between them."""

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


class Refused(Exception):
    """Told to the caller in ARM's shape."""

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
    base: str  # of URLs that lead back here

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass(frozen=True)
class Answer:
    """`body` is bytes, an iterator of pieces of them that are sent as they come, or what becomes JSON."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None  # called once it is sent, or cannot be


Handler = Callable[..., Answer]


class Routes:
    """Handlers by method and path; names in braces become arguments."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, template: str, handler: Handler) -> None:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
        self._routes.append((method, re.compile(pattern + "/?", re.IGNORECASE), handler))

    def __call__(self, request: Request) -> Answer:
        for method, pattern, handler in self._routes:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return handler(request, **{name: unquote(value) for name, value in match.groupdict().items()})
        raise Refused(404, "NotFound", f"the stand-in has no {request.method} {request.path}")


class _Left(Exception):
    """The caller, in the middle of its body."""


class Server(ThreadingHTTPServer):
    """TLS on localhost; on a free port where `port` is 0."""

    daemon_threads = True

    def __init__(self, handle: Callable[[Request], Answer], certificate: Path, key: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.handle = handle
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # The handshake is the connection's own thread's: who connects and says nothing holds up nobody.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers who do not trust the certificate, or leave, are no failure of the server's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        try:
            answer = self.server.handle(self._request())
        except Refused as refused:
            answer = _error(refused)
        except _Left:
            self.close_connection = True
            return
        except Exception as error:
            traceback.print_exc()
            answer = _error(Refused(500, "InternalServerError", repr(error)))
        try:
            self._send(answer)
        finally:
            answer.close()

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
            raise _Left
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
            self.close_connection = True
            raise Refused(400, "BadRequest", "the body's chunks have no sizes")
        return int(line, 16)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _answer

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if isinstance(answer.body, Iterator):
            self._send_headers({**answer.headers, "Transfer-Encoding": "chunked"})
            self._send_pieces(answer.body)
            return
        headers = dict(answer.headers)
        body = _bytes(answer.body, headers)
        headers.setdefault("Content-Length", str(len(body)))  # HEAD tells of what it does not send
        self._send_headers(headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_pieces(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):  # the caller or the service has gone
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        return


def _error(refused: Refused) -> Answer:
    error = {"error": {"code": refused.code, "message": refused.message}}
    return Answer(refused.status, error, {"x-ms-error-code": refused.code, **refused.headers})


def _bytes(body: Any, headers: dict[str, str]) -> bytes:
    if body is None:
        return b""
    if isinstance(body, bytes):
        return body
    headers.setdefault("Content-Type", "application/json")
    return json.dumps(body).encode()
