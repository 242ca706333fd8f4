"""The caller's end of a request: whether anybody is still there."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class Connection:
    """The socket a request came on; without one, a caller who never leaves."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = sock

    def gone(self) -> bool:
        """Whether the caller has hung up; never blocks.

        A caller who shuts down his sending half only is taken for gone as well, as HTTP servers and proxies do.
        """
        if self._socket is None:
            return False
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(0):
                return False
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # reset, or closed on our side
            return True

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Within, reading raises TimeoutError when nothing comes for as long."""
        if self._socket is None:
            yield
            return
        before = self._socket.gettimeout()
        self._socket.settimeout(seconds)
        try:
            yield
        finally:
            self._socket.settimeout(before)
