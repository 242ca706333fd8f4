"""The end of this process: told to go, or no use any more."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)
# gunicorn kills what has not ended 30 s after its SIGTERM (graceful_timeout); callers get their answers before.
DRAIN_SECONDS = 25.0
# For answers that are on their way when the process ends itself.
FLUSH_SECONDS = 1.0
# gunicorn's own for a worker that cannot start: it ends the whole server instead of starting another worker.
WORKER_BOOT_ERROR = 3


def on_sigterm(drain: Callable[[float], None]) -> None:
    """Calls `drain` with the seconds there are, before whatever the server does about the signal."""
    if threading.current_thread() is not threading.main_thread():
        return  # signals are the main thread's, and a server that loads elsewhere handles them itself
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        drain(DRAIN_SECONDS)
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)


def exit_unhealthy(reason: str) -> None:
    """Ends the server, so that whoever runs the container starts a fresh one: the server's own probe would go on
    saying that all is well."""
    time.sleep(FLUSH_SECONDS)
    logger.critical("the service ends itself: %s", reason)
    logging.shutdown()
    os._exit(WORKER_BOOT_ERROR)
