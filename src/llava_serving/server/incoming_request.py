"""The bytes of one request: collected as they arrive, then read by gunicorn's parser as if from a socket."""

from collections import deque
from collections.abc import Callable

from .request_framing import RequestFraming


class IncomingRequest:
    """A request that arrives in pieces.

    One thread pushes the pieces. When it has delivered the request, another thread reads them with `recv`, which never
    waits: after the last byte it returns no bytes, as at the end of a connection, or raises TimeoutError if the client
    stopped sending.
    """

    def __init__(self, began: float) -> None:
        self.began = began  # time.monotonic() of the first byte
        self.framing = RequestFraming()
        self.is_whole = False
        self.is_delivered = False
        self.timed_out = False
        self.num_bytes = 0
        self._pieces: deque[bytes] = deque()
        self._on_consumed: Callable[[int], None] | None = None

    def push(self, data: bytes) -> bytes | None:
        """Takes the next bytes. Returns those that follow the request, once it is whole. Raises as RequestFraming."""
        end = None
        try:
            end = self.framing.push(data)
        finally:
            body = data[self.framing.body_start : end] if self.framing.head else b""
            self.num_bytes += len(data) if end is None else end
            if body:
                self._pieces.append(body)
        self.is_whole = end is not None
        return None if end is None else data[end:]

    def deliver(self, on_consumed: Callable[[int], None]) -> None:
        """Ends the collection. `on_consumed` is called once, in the reading thread, with the bytes that were held."""
        self.is_delivered = True
        self._pieces.appendleft(self.framing.head)
        self._on_consumed = on_consumed

    def recv(self, size: int) -> bytes:
        """Returns at most `size` of the next bytes, and forgets them."""
        if not self._pieces:
            if self.timed_out:
                raise TimeoutError("the client stopped sending")
            return b""
        piece = self._pieces.popleft()
        if len(piece) > size:
            self._pieces.appendleft(piece[size:])
            piece = piece[:size]
        if not self._pieces:
            self.release()
        return piece

    def release(self) -> None:
        """Forgets the bytes that nobody has read."""
        on_consumed, self._on_consumed = self._on_consumed, None
        self._pieces.clear()
        if on_consumed is not None:
            on_consumed(self.num_bytes)
