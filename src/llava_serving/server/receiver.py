"""Receives requests from all connections in one thread. A connection holds no other thread until its request is whole.

The time limits, the number of connections and the bytes held have bounds, so that slow clients take nothing from
others: at the limit of connections the one that was silent for longest is closed, and at the limit of bytes large
bodies wait unread, first come, first served.
"""

import contextlib
import selectors
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .client_connection import Address, ClientConnection, error_response
from .incoming_request import IncomingRequest
from .request_framing import MAX_HEAD_BYTES, HeadTooLarge, UnknownEnd

READ_BYTES = 64 * 1024
# Each connection may hold this much, even at the limit of bytes, so that small requests pass large ones.
SMALL_BYTES = 64 * 1024
# After an answer that ends its connection, the front reads on for this long, because a client does not read the answer
# while it sends, and the kernel would discard it (RFC 9112, section 9.6).
LINGER_SECONDS = 30.0
LINGER_SILENCE_SECONDS = 1.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_TOO_LARGE = error_response(431, "headers_too_large", f"the headers have more than {MAX_HEAD_BYTES:,} bytes")
HEAD_TIMEOUT = error_response(408, "headers_timeout", "the headers did not arrive in time")
UNKNOWN_END = error_response(
    400,
    "malformed_request",
    "the headers do not say in one way where the body ends: send one Content-Length, or chunks",
)

Deliver = Callable[[ClientConnection, IncomingRequest], None]


@dataclass(frozen=True)
class ReceiveLimits:
    """Bounds on connections, in seconds and bytes.

    `read_seconds` without a byte end a request that has begun, and so do `receive_seconds` in all. `idle_seconds` end a
    connection between two requests.
    """

    max_connections: int
    max_body_bytes: int
    max_held_bytes: int
    read_seconds: float
    receive_seconds: float
    idle_seconds: float


class Receiver:
    """The connections that wait for bytes. Every method runs in the thread that dispatches the selector's events."""

    def __init__(self, limits: ReceiveLimits, selector: selectors.BaseSelector, deliver: Deliver) -> None:
        self._limits = limits
        self._selector = selector
        self._deliver = deliver
        self._waiting: OrderedDict[ClientConnection, None] = OrderedDict()  # the longest silent one first
        self._paused: OrderedDict[ClientConnection, None] = OrderedDict()  # the one that waits longest first
        self._large: OrderedDict[ClientConnection, None] = OrderedDict()  # have more than SMALL_BYTES; oldest first
        self._num_in_service = 0
        self._held_bytes = 0

    @property
    def num_connections(self) -> int:
        return len(self._waiting) + len(self._paused) + self._num_in_service

    @property
    def held_bytes(self) -> int:
        """The bytes of requests that were not read yet."""
        return self._held_bytes

    def accept(self, sock: socket.socket, client: Address, server: Address) -> None:
        """Takes a new connection. Closes the connection that was silent for longest, if there are too many."""
        connection = ClientConnection(sock, client, server, time.monotonic())
        if self.num_connections >= self._limits.max_connections and not self.close_oldest():
            connection.close()
            return
        self._wait_for_bytes(connection)

    def keep_alive(self, connection: ClientConnection) -> None:
        """Waits for the next request of a connection whose answer is sent."""
        self._num_in_service -= 1
        connection.sock.setblocking(False)
        if connection.incoming is not None:
            connection.incoming.release()
        connection.incoming, connection.last_byte = None, time.monotonic()
        leftover, connection.leftover = connection.leftover, b""
        self._wait_for_bytes(connection)
        if leftover:
            self._take(connection, leftover)

    def finish(self, connection: ClientConnection) -> None:
        """Ends a connection whose answer is sent: the client may still send, and then reads the answer."""
        self._num_in_service -= 1
        self._linger(connection)

    def consumed(self, num_bytes: int) -> None:
        """Records that bytes of a delivered request are held no more. Large bodies that waited are read on."""
        self._held_bytes -= num_bytes
        self._resume_paused()

    def check_times(self) -> None:
        """Ends the connections whose time is over."""
        now = time.monotonic()
        for connection in list(self._waiting):
            if connection.lingers_since is not None:
                silent = now - connection.last_byte > LINGER_SILENCE_SECONDS
                if silent or now - connection.lingers_since > LINGER_SECONDS:
                    self._close(connection)
            elif self._is_late(connection, now):
                self._time_out(connection)

    def close_oldest(self) -> bool:
        """Closes the connection that was silent for longest. Returns False if none waits for bytes."""
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self._close(oldest)
        return oldest is not None

    def close_idle(self) -> None:
        """Closes the connections that have sent nothing of a request."""
        for connection in list(self._waiting):
            if connection.incoming is None and connection.lingers_since is None:
                self._close(connection)

    def close_all(self) -> None:
        for connection in [*self._waiting, *self._paused]:
            self._close(connection)

    def _wait_for_bytes(self, connection: ClientConnection) -> None:
        self._waiting[connection] = None
        self._selector.register(connection.sock, selectors.EVENT_READ, partial(self._read, connection))

    def _stop_waiting(self, connection: ClientConnection) -> None:
        if connection in self._waiting:
            del self._waiting[connection]
            self._selector.unregister(connection.sock)
        self._paused.pop(connection, None)

    def _read(self, connection: ClientConnection, _: object) -> None:
        if connection not in self._waiting:  # closed by an earlier event of the same turn
            return
        try:
            data = connection.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end_of_input(connection)
            return
        connection.last_byte = time.monotonic()
        self._waiting.move_to_end(connection)
        if connection.lingers_since is None:
            self._take(connection, data)

    def _take(self, connection: ClientConnection, data: bytes) -> None:
        """Adds bytes to the request that arrives, and delivers it if it is whole or can only be refused."""
        if connection.incoming is None:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2; some clients end a body with an empty line
            if not data:
                return
            connection.incoming = IncomingRequest(connection.last_byte)
        incoming = connection.incoming
        had_head = bool(incoming.framing.head)
        try:
            leftover = self._push(incoming, data)
        except HeadTooLarge:
            self._refuse(connection, HEAD_TOO_LARGE)
            return
        except UnknownEnd:
            if not incoming.framing.has_body:
                self._refuse(connection, UNKNOWN_END)
                return
            leftover = b""  # the service answers that the body cannot be read
        if leftover is not None or incoming.framing.body_size > self._limits.max_body_bytes:
            connection.leftover = leftover or b""
            self._hand_over(connection, incoming)
            return
        if incoming.framing.expects_continue and not had_head:
            connection.send(CONTINUE)
        if incoming.num_bytes > SMALL_BYTES:
            self._large[connection] = None
            if not self._may_read(connection):
                self._stop_waiting(connection)
                self._paused[connection] = None

    def _push(self, incoming: IncomingRequest, data: bytes) -> bytes | None:
        before = incoming.num_bytes
        try:
            return incoming.push(data)
        finally:  # a refused request holds its bytes too, until its connection is closed
            self._held_bytes += incoming.num_bytes - before

    def _refuse(self, connection: ClientConnection, answer: bytes) -> None:
        connection.send(answer)
        self._stop_waiting(connection)
        self._linger(connection)

    def _hand_over(self, connection: ClientConnection, incoming: IncomingRequest) -> None:
        self._stop_waiting(connection)
        self._large.pop(connection, None)
        self._num_in_service += 1
        connection.num_requests += 1
        self._deliver(connection, incoming)
        self._resume_paused()

    def _may_read(self, connection: ClientConnection) -> bool:
        """Returns whether a large request may grow: there is room, or it is the oldest, so that one always goes on."""
        return self._held_bytes < self._limits.max_held_bytes or next(iter(self._large)) is connection

    def _resume_paused(self) -> None:
        for connection in list(self._paused):
            if not self._may_read(connection):
                continue
            now = time.monotonic()
            assert connection.incoming is not None
            connection.incoming.began += now - connection.last_byte  # the pause was not the client's
            connection.last_byte = now
            self._stop_waiting(connection)
            self._wait_for_bytes(connection)

    def _end_of_input(self, connection: ClientConnection) -> None:
        """The client has closed its half of the connection, or all of it."""
        incoming = connection.incoming
        if connection.lingers_since is None and incoming is not None and incoming.framing.head:
            self._hand_over(connection, incoming)  # which answers that the body is incomplete
        else:
            self._close(connection)

    def _is_late(self, connection: ClientConnection, now: float) -> bool:
        silence = now - connection.last_byte
        if connection.incoming is None:
            return silence > (self._limits.idle_seconds if connection.num_requests else self._limits.read_seconds)
        return silence > self._limits.read_seconds or now - connection.incoming.began > self._limits.receive_seconds

    def _time_out(self, connection: ClientConnection) -> None:
        incoming = connection.incoming
        if incoming is not None and incoming.framing.head:
            incoming.timed_out = True
            self._hand_over(connection, incoming)  # which answers that the body did not arrive
            return
        if incoming is not None:
            connection.send(HEAD_TIMEOUT)
        self._close(connection)

    def _linger(self, connection: ClientConnection) -> None:
        if connection.incoming is not None:
            connection.incoming.release()
        connection.sock.setblocking(False)
        connection.lingers_since = connection.last_byte = time.monotonic()
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        self._wait_for_bytes(connection)

    def _close(self, connection: ClientConnection) -> None:
        self._stop_waiting(connection)
        was_large = connection in self._large
        self._large.pop(connection, None)
        if connection.incoming is not None and not connection.incoming.is_delivered:
            self._held_bytes -= connection.incoming.num_bytes
        with contextlib.suppress(OSError):
            connection.close()
        if was_large:
            self._resume_paused()
