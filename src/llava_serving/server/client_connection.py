"""A client's connection, and the short answers that the front sends without a thread."""

import contextlib
import json
import socket
from http import HTTPStatus
from typing import Any

from .incoming_request import IncomingRequest

Address = Any  # of the socket's family


class ClientConnection:
    """One connection. Its socket does not block while the front has it."""

    def __init__(self, sock: socket.socket, client: Address, server: Address, now: float) -> None:
        self.sock = sock
        self.client = client
        self.server = server
        self.incoming: IncomingRequest | None = None
        self.leftover = b""  # bytes of the next request, which came with the last one
        self.num_requests = 0
        self.lingers_since: float | None = None
        self.last_byte = now  # time.monotonic()
        sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Sends a few bytes. A client that does not even take these gets nothing."""
        with contextlib.suppress(OSError):
            self.sock.send(data)

    def close(self) -> None:
        if self.incoming is not None:
            self.incoming.release()
        self.sock.close()


def error_response(status: int, code: str, message: str) -> bytes:
    """Returns an HTTP response with the service's error object, after which the connection ends."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = json.dumps({"error": {"code": code, "message": message, "param": None, "type": kind}}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
