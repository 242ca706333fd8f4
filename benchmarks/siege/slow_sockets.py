"""Many connections that begin a request and do not end it, held by one thread with a selector."""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

DRIP_SECONDS = 1.0


@dataclass
class SlowCaller:
    """A connection that sends `first` at once, and then a byte of `drip` each second."""

    kind: str
    first: bytes
    drip: bytes = b""
    sock: socket.socket | None = None
    outcome: str = "still open"
    seconds: float = 0.0  # until the server ended it
    received: bytes = b""


class SlowSockets:
    """Opens the connections of all callers at once and watches what the server does with each."""

    def __init__(self, port: int, callers: Iterable[SlowCaller]) -> None:
        self._address = ("127.0.0.1", port)
        self._callers = list(callers)
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic()

    def hold(self, seconds: float, on_open: Callable[[], None]) -> None:
        """Keeps the connections for `seconds`, or until the server has ended all of them, and closes the rest."""
        for caller in self._callers:
            self._open(caller)
        on_open()
        end, next_drip = self._started + seconds, time.monotonic() + DRIP_SECONDS
        while self._selector.get_map() and (now := time.monotonic()) < end:
            for key, events in self._selector.select(min(end, next_drip) - now if min(end, next_drip) > now else 0):
                self._serve(key.data, events)
            if time.monotonic() >= next_drip:
                next_drip += DRIP_SECONDS
                self._drip()
        for key in list(self._selector.get_map().values()):
            self._close(key.data, key.data.outcome)

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Returns the number of connections by kind and outcome."""
        kinds = dict.fromkeys(caller.kind for caller in self._callers)
        return {kind: Counter(caller.outcome for caller in self._callers if caller.kind == kind) for kind in kinds}

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Returns by kind the first and the last time, in seconds, at which the server ended a connection."""
        ended: dict[str, list[float]] = {}
        for caller in self._callers:
            if caller.outcome != "still open":
                ended.setdefault(caller.kind, []).append(caller.seconds)
        return {kind: (min(times), max(times)) for kind, times in ended.items()}

    def _open(self, caller: SlowCaller) -> None:
        caller.sock = socket.socket()
        caller.sock.setblocking(False)
        caller.sock.connect_ex(self._address)
        self._selector.register(caller.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, caller)

    def _serve(self, caller: SlowCaller, events: int) -> None:
        assert caller.sock is not None
        try:
            if events & selectors.EVENT_WRITE:  # connected
                self._selector.modify(caller.sock, selectors.EVENT_READ, caller)
                if caller.first:
                    caller.sock.send(caller.first)
            if events & selectors.EVENT_READ:
                data = caller.sock.recv(4096)
                caller.received += data
                if not data:
                    self._close(caller, _status(caller.received) or "closed")
        except OSError as error:
            self._close(caller, _status(caller.received) or type(error).__name__)

    def _drip(self) -> None:
        for key in list(self._selector.get_map().values()):
            caller: SlowCaller = key.data
            if caller.drip and key.events == selectors.EVENT_READ:
                byte, caller.drip = caller.drip[:1], caller.drip[1:]
                try:
                    key.fileobj.send(byte)  # type: ignore[union-attr]
                except OSError as error:
                    self._close(caller, _status(caller.received) or type(error).__name__)

    def _close(self, caller: SlowCaller, outcome: str) -> None:
        assert caller.sock is not None
        self._selector.unregister(caller.sock)
        caller.sock.close()
        caller.outcome, caller.seconds = outcome, time.monotonic() - self._started


def _status(received: bytes) -> str | None:
    return received.split()[1].decode("latin-1") if received.startswith(b"HTTP/") else None
