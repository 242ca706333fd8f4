"""A real azmlinfsrv process on score.py, and requests to it."""

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`azmlinfsrv --entry_script score.py`, started in a folder that is not the repository."""

    def __init__(self, log: Path, model_dir: Path | None = None, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = log
        command = [str(Path(sys.executable).parent / "azmlinfsrv"), "--entry_script", str(ROOT / "score.py")]
        command += ["--port", str(self.port), *(["--model_dir", str(model_dir)] if model_dir else [])]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLAVA_", "AZUREML_", "AML_", "GUNICORN_"))}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=clean | (environment or {}), stdout=out, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.request("GET", "/").status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the server did not become healthy:\n{self.log}")

    def wait_until_ended(self) -> int:
        """The exit status of a server that refuses to start."""
        return self._process.wait(START_SECONDS)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def score(self, body: Any, **headers: str) -> Answer:
        """POST /score; a `body` that is no bytes is sent as JSON."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", "/score", encoded, {"Content-Type": "application/json"} | named)


def as_base64(picture: Image.Image, format: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return base64.b64encode(file.getvalue()).decode()
