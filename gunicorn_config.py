"""gunicorn's settings for Azure's server: GUNICORN_CMD_ARGS="--config python:gunicorn_config".

Azure's server puts this folder (AML_APP_ROOT) on Python's path before it starts gunicorn.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from llava_serving.server.gunicorn_settings import on_starting, threads, when_ready, worker_class

__all__ = ["on_starting", "threads", "when_ready", "worker_class"]
