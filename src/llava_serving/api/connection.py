"""The client's connection: whether the client has closed it."""

import select
import socket

# macOS has no POLLRDHUP. There, a closed connection is one that has an end of file to read, which stays unseen behind
# bytes that the client sent after the body.
HANGUP = getattr(select, "POLLRDHUP", select.POLLIN)


class Connection:
    """The socket of a request. Without a socket, the client counts as connected."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = sock

    def is_disconnected(self) -> bool:
        """Returns whether the client has closed the connection. Never blocks.

        A client that only shuts down its sending half counts as disconnected too, as in HTTP servers and proxies.
        """
        if self._socket is None:
            return False
        try:
            poll = select.poll()
            poll.register(self._socket, HANGUP)
            return bool(poll.poll(0)) and (HANGUP != select.POLLIN or self._socket.recv(1, socket.MSG_PEEK) == b"")
        except (OSError, ValueError):  # the connection was reset, or the server has closed it
            return True
