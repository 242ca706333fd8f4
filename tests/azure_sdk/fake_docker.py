"""A fake of docker-py, as far as Azure's SDK uses it for local endpoints. A container is a process of Azure's server.

It runs what the image's start script would run, with the variables and the folders that the SDK gives the container.
"""

import os
import signal
import socket
import subprocess
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SETTING_PREFIXES = ("LLAVA_", "AZUREML_", "AML_", "GUNICORN_", "WORKER_")


class Container:
    def __init__(
        self, python: Path, folder: Path, name: str, labels: dict[str, str], volumes: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.name, self.labels, self.status = name, labels, "created"
        self.ports = {"5001/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(self._port)}]}
        self._python, self._log = python, folder / f"{name}.log"
        mounts = [volume.split(":")[:2] for volume in volumes]
        self._environment = {variable: _on_host(value, mounts) for variable, value in environment.items()}

    def start(self) -> None:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}
        script = Path(self._environment["AML_APP_ROOT"]) / self._environment["AZUREML_ENTRY_SCRIPT"]
        command = [self._python, "-m", "azureml_inference_server_http", "--entry_script", script]
        self._process = subprocess.Popen(
            [*map(str, command), "--port", str(self._port)],
            env=variables | self._environment | {"LLAVA_HOST": "127.0.0.1"},
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.status = "running"
        _wait_for(f"http://127.0.0.1:{self._port}/", self._process)

    def reload(self) -> None:
        self.status = "exited" if self._process.poll() is not None else "running"

    def logs(self, tail: int) -> bytes:
        return b"\n".join(self._log.read_bytes().splitlines()[-tail:])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def remove(self) -> None:
        self.status = "removed"


class Docker(types.ModuleType):
    """The module `docker`, and its own client. `dockerfiles` holds what it was asked to build."""

    def __init__(self, python: Path, folder: Path) -> None:
        super().__init__("docker")
        error = type("DockerException", (Exception,), {})
        names = ("BuildError", "ImageNotFound", "NotFound", "APIError")
        self.errors = types.SimpleNamespace(DockerException=error, **{name: type(name, (error,), {}) for name in names})
        self.api = self.containers = self
        self.dockerfiles: list[str] = []
        self._python, self._folder = python, folder
        self._containers: list[Container] = []

    def from_env(self) -> "Docker":
        return self

    def build(self, dockerfile: str, **_: Any) -> Iterator[dict[str, str]]:
        self.dockerfiles.append(Path(dockerfile).read_text())
        yield {"stream": "built"}

    def create(
        self, image: str, name: str, labels: dict[str, str], volumes: Sequence[str], environment: Mapping[str, str],
        **_: Any,
    ) -> Container:  # fmt: skip
        self._containers.append(Container(self._python, self._folder, name, labels, volumes, environment))
        return self._containers[-1]

    def list(self, filters: Mapping[str, Sequence[str]], **_: Any) -> list[Container]:
        return [container for container in self._containers if container.status != "removed"]


def _on_host(value: str, mounts: Sequence[Sequence[str]]) -> str:
    """Returns the host's path of a path in the container, and any other value as it is."""
    for source, target in sorted(mounts, key=lambda mount: -len(mount[1])):
        if value.rstrip("/") == target.rstrip("/"):
            return source
    return value


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(url, timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the server does not answer")
