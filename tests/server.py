"""Starts azmlinfsrv on score.py as a process, and sends requests to it."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_SECONDS = 120
# What the deployment files set, and Azure.
DEPLOYED = {"GUNICORN_CMD_ARGS": "--config python:gunicorn_config", "AML_APP_ROOT": str(ROOT)}
# The longest time that a test waits for an answer.
TIMEOUT_SECONDS = 60
REQUEST_LOG = "llava_serving.service.request_log - "


@dataclass
class Answer:
    """A complete response. `headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Event:
    """A server-sent event: its name, and its data read as JSON unless it is `[DONE]`."""

    name: str
    data: Any


class Stream:
    """A response whose body is read while the server writes it."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}

    def __iter__(self) -> Iterator[Event]:
        name = "message"
        while line := self._response.readline():
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield Event(name, value if value == "[DONE]" else json.loads(value))
            else:
                assert not field, line
                name = "message"

    def read(self) -> bytes:
        return self._response.read()

    def close(self) -> None:
        """Closes the connection, as a client that disconnects does."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Server:
    """The process `azmlinfsrv --entry_script score.py`, in a working folder outside the repository."""

    def __init__(
        self,
        log: Path,
        model_dir: Path | None = None,
        environment: dict[str, str] | None = None,
        entry_script: Path = ROOT / "score.py",
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = log
        command = [str(Path(sys.executable).parent / "azmlinfsrv"), "--entry_script", str(entry_script)]
        command += ["--port", str(self.port), *(["--model_dir", str(model_dir)] if model_dir else [])]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLAVA_", "AZUREML_", "AML_", "GUNICORN_"))}
        variables = clean | DEPLOYED | (environment or {})
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=variables, stdout=out, stderr=subprocess.STDOUT
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
        return self.log_bytes.decode("utf-8", "replace")

    @property
    def log_bytes(self) -> bytes:
        return self._log.read_bytes()

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.request("GET", "/").status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the server did not become healthy:\n{self.log}")

    def wait_until_ended(self) -> int:
        """Returns the exit status of a server that refuses to start or ends by itself."""
        return self._process.wait(START_TIMEOUT_SECONDS)

    def terminate(self) -> None:
        """Sends SIGTERM, as Azure does before it removes a container."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def worker_pids(self) -> list[int]:
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def request_records(self, request_id: str) -> list[dict[str, Any]]:
        """Returns the request log's records of requests with this x-ms-client-request-id."""
        lines = [line for line in self.log.split("\n")[:-1] if REQUEST_LOG in line]
        records = [json.loads(line.partition(REQUEST_LOG)[2]) for line in lines]
        return [record for record in records if record["request_id"] == request_id]

    def wait_for_record(self, request_id: str) -> dict[str, Any]:
        """Returns the one record of a request. The service writes it at the end of the request."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (records := self.request_records(request_id)):
            assert time.monotonic() < deadline, f"the log has no record of {request_id}:\n{self.log}"
            time.sleep(0.02)
        (record,) = records
        return record

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS)

    def stream(self, body: Any, **headers: str) -> Stream:
        """Sends POST /score like `score`, and returns after the response's headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        connection.request("POST", "/score", json.dumps(body).encode(), _headers(headers))
        return Stream(connection)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def score(self, body: Any, **headers: str) -> Answer:
        """Sends POST /score, with a `body` of bytes as it is and any other as JSON."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", "/score", encoded, _headers(headers))


def _headers(headers: dict[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}


def as_base64(image: Image.Image, format: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format, **options)
    return base64.b64encode(file.getvalue()).decode()
