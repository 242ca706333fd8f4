"""gunicorn's settings for Azure's server. gunicorn_config.py at the top level hands them to gunicorn.

GUNICORN_CMD_ARGS comes after them, so `--threads N` there still counts.
"""

import os
from typing import Any

from ..errors import StartupError
from ..settings import Settings
from .stop_signals import StopSignals

try:
    settings = Settings.from_environment(os.environ)
except StartupError:
    settings = Settings()  # init() refuses the settings, with the reason

worker_class = "llava_serving.server.worker.Worker"
# One thread per admitted request, and more that refuse others and answer probes at once.
threads = settings.threads


def on_starting(server: Any) -> None:
    """Binds to LLAVA_HOST. Azure's server has no option for the address, and binds to all of them."""
    if settings.host is not None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        server.cfg.set("bind", [f"{host}:{port}" for _, port, *_ in server.cfg.address])


def when_ready(server: Any) -> None:
    StopSignals(server).install()
