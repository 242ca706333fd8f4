"""The signals that stop gunicorn's master process."""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Handles SIGTERM: the first one ends the answers under way in order, the second one ends the workers at once.

    gunicorn ignores a second SIGTERM while it waits for its workers. Ctrl-C (SIGINT) ends them at once anyway.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._is_stopping = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._server.signal(signal.SIGQUIT if self._is_stopping else number, frame)
        self._is_stopping = True
