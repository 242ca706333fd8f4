"""The receiver alone, on socket pairs: whatever clients send, it holds no bytes and no connection after they left."""

import selectors
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_serving.server.client_connection import ClientConnection
from llava_serving.server.incoming_request import IncomingRequest
from llava_serving.server.receiver import ReceiveLimits, Receiver
from llava_serving.server.request_framing import MAX_HEAD_BYTES

MAX_BODY_BYTES = 100_000
POST = b"POST /score HTTP/1.1\r\n"
REQUESTS = {
    "whole": POST + b"Content-Length: 3\r\n\r\nabc",
    "two in a row": POST + b"Content-Length: 3\r\n\r\nabc" + POST + b"Content-Length: 1\r\n\r\na",
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "large": POST + b"Content-Length: 90000\r\n\r\n" + b"a" * 90_000,
    "above the limit": POST + b"Content-Length: 200000\r\n\r\n" + b"a" * 200_000,
    "head too large": POST + b"x: " + b"a" * (MAX_HEAD_BYTES + 10_000),
    "no single end": POST + b"x: " + b"a" * 5_000 + b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
    "malformed chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nno number\r\n" + b"a" * 5_000,
    "head that ends early": POST + b"Content-Le",
    "body that ends early": POST + b"Content-Length: 90000\r\n\r\n" + b"a" * 80_000,
}


class Front:
    """A receiver that answers each request at once, and its clients."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        limits = ReceiveLimits(100, MAX_BODY_BYTES, 150_000, read_seconds=60, receive_seconds=60, idle_seconds=60)
        self.receiver = Receiver(limits, self.selector, self._answer)
        self._answered: list[tuple[ClientConnection, IncomingRequest]] = []

    def connect(self) -> socket.socket:
        client, server = socket.socketpair()
        client.setblocking(False)
        self.receiver.accept(server, None, None)
        return client

    def turn(self) -> None:
        for key, mask in self.selector.select(timeout=0):
            key.data(mask)
        answered, self._answered = self._answered, []
        for connection, incoming in answered:
            while incoming.recv(8192):
                pass
            keep = incoming.is_whole
            (self.receiver.keep_alive if keep else self.receiver.finish)(connection)

    def _answer(self, connection: ClientConnection, incoming: IncomingRequest) -> None:
        incoming.deliver(self.receiver.consumed)
        self._answered.append((connection, incoming))


class Client:
    def __init__(self, sock: socket.socket, request: bytes) -> None:
        self.socket, self.unsent = sock, request

    def send(self, size: int) -> None:
        """Sends at most `size` of the bytes that are left."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent[:size]) :]
        except BlockingIOError:
            pass
        except OSError:  # the receiver has closed the connection
            self.unsent = b""


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 100, 4_000, 40_000])), max_size=20),
)
def test_after_its_clients_left_the_receiver_holds_no_bytes_and_no_connection(
    names: list[str], pieces: list[tuple[int, int]]
) -> None:
    front = Front()
    clients = [Client(front.connect(), REQUESTS[name]) for name in names]
    for index, size in pieces:
        clients[index % len(clients)].send(size)
        front.turn()
    while clients:
        for client in list(clients):
            client.send(200_000)
            if not client.unsent:
                client.socket.close()
                clients.remove(client)
            front.turn()
    for _ in range(100):
        front.turn()
    assert (front.receiver.held_bytes, front.receiver.num_connections) == (0, 0)
