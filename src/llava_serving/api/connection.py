"""The caller's end of a request: whether anybody is still there."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Where there is no such event (macOS), the end is what can be read; behind bytes that were sent after the body it is
# not seen.
HANGUP = getattr(select, "POLLRDHUP", select.POLLIN)


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
            poll.register(self._socket, HANGUP)
            return bool(poll.poll(0)) and (HANGUP != select.POLLIN or self._socket.recv(1, socket.MSG_PEEK) == b"")
        except (OSError, ValueError):  # reset, or closed on our side
            return True

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Within, reading and writing raise TimeoutError when nothing comes or goes for as long."""
        if self._socket is None:
            yield
            return
        before = self._socket.gettimeout()
        self._socket.settimeout(seconds)
        try:
            yield
        finally:
            self._socket.settimeout(before)
