"""Callers that leave in the middle of a request or of its answer, and callers that do not read."""

import random
import socket
import struct
import time
from collections.abc import Callable

from .bodies import large_stream_request, long_request, score_body
from .caller import Request
from .ledger import LEFT, Ledger
from .raw_request import raw_bytes, raw_head

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST
SMALL_BUFFER = 4096


def leave(port: int, rng: random.Random, ledger: Ledger, picture: str) -> None:
    """Does one of WAYS, and closes the connection, sometimes with a reset."""
    name = rng.choice(list(WAYS))
    ledger.offer()
    try:
        with socket.socket() as sock:
            if name == "without reading":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sock.settimeout(30)
            sock.connect(("127.0.0.1", port))
            WAYS[name](sock, rng, picture)
            if rng.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # the server has closed the connection first: the caller leaves in any case
    ledger.record(LEFT, name)


def _in_the_head(sock: socket.socket, rng: random.Random, picture: str) -> None:
    head = raw_head(long_request())
    sock.sendall(head[: rng.randrange(len(head))])
    time.sleep(rng.uniform(0, 2))


def _in_the_body(sock: socket.socket, rng: random.Random, picture: str) -> None:
    request = Request(score_body(picture))
    sock.sendall(raw_head(request) + request.body[: rng.randrange(len(request.body))])
    time.sleep(rng.uniform(0, 2))


def _in_the_answer(sock: socket.socket, rng: random.Random, picture: str) -> None:
    sock.sendall(raw_bytes(long_request()))
    time.sleep(rng.uniform(0, 0.5))


def _in_the_stream(sock: socket.socket, rng: random.Random, picture: str) -> None:
    sock.sendall(raw_bytes(long_request(stream=True)))
    for _ in range(rng.randint(1, 4)):
        sock.recv(200)


def _without_reading(sock: socket.socket, rng: random.Random, picture: str) -> None:
    sock.sendall(raw_bytes(large_stream_request()))
    time.sleep(rng.uniform(1, 5))


WAYS: dict[str, Callable[[socket.socket, random.Random, str], None]] = {
    "in the head": _in_the_head, "in the body": _in_the_body, "in the whole answer": _in_the_answer,
    "in the stream": _in_the_stream, "without reading": _without_reading,
}  # fmt: skip
