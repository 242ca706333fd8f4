"""A server that sends given responses, or ends the connection instead."""

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Cut:
    """Sends `sent` in place of a response, and then ends the connection: with a reset, or without an error."""

    sent: bytes = b""
    reset: bool = True


@dataclass(frozen=True)
class Silence:
    """Sends nothing for `seconds`."""

    seconds: float


Response = tuple[int, dict[str, str], bytes] | Cut | Silence  # the tuple is status, headers, body
StartServer = Callable[..., "ScriptedServer"]
OK: Response = (200, {"x-llava-total-ms": "1.0"}, b'[{"0": "fine"}]')


class ScriptedServer(ThreadingHTTPServer):
    """Sends the given responses in order, then the last one again and again; records headers and times of requests."""

    def __init__(self, *responses: Response, port: int = 0) -> None:
        self.responses = list(responses)
        self.request_headers: list[dict[str, str]] = []
        self.times: list[float] = []
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"

    def wait_for_requests(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.request_headers) < number:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        self.server.times.append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.request_headers.append({name.lower(): value for name, value in self.headers.items()})
        responses = self.server.responses
        response = responses.pop(0) if len(responses) > 1 else responses[0]
        if isinstance(response, Silence):
            time.sleep(response.seconds)
        elif isinstance(response, Cut):
            self._cut(response)
        else:
            self._send(*response)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _cut(self, cut: Cut) -> None:
        if cut.sent:
            self.wfile.write(cut.sent)
            time.sleep(0.3)  # so that the client reads the bytes before the reset
        if cut.reset:  # a socket that does not linger sends a reset when it closes
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass
