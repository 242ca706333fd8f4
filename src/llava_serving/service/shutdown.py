"""The end of this process: on SIGTERM, and when the device has failed."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)
# gunicorn kills a worker 30 s after its SIGTERM (graceful_timeout). Clients get their answers before.
DRAIN_SECONDS = 25.0
# Answers that are under way when the process ends itself have this long to reach their clients.
FLUSH_SECONDS = 1.0
# gunicorn's own exit status of a worker that cannot start: it ends the whole server and starts no other worker.
WORKER_BOOT_ERROR = 3


def on_sigterm(drain: Callable[[float], None]) -> None:
    """Calls `drain` with the number of seconds that are left, before the server's own signal handler."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread receives signals; a server that loads in another thread handles them itself
    server_handler = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        drain(DRAIN_SECONDS)
        if callable(server_handler):
            server_handler(number, frame)
        elif server_handler == signal.SIG_DFL:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)


def exit_unhealthy(reason: str) -> None:
    """Ends the server, so that the platform starts a fresh container.

    The server's own probe would go on to report that it is healthy.
    """
    time.sleep(FLUSH_SECONDS)
    logger.critical("the service ends itself: %s", reason)
    logging.shutdown()
    os._exit(WORKER_BOOT_ERROR)
