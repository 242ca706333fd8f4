"""The real service of one deployment: Azure's server as a process, told what a container would be told."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

FOREIGN = ("LLAVA_", "AZUREML_", "AML_", "GUNICORN_", "WORKER_")
STOP_SECONDS = 30


def environment(code: Path, entry_script: str, model: Path | None, variables: Mapping[str, str]) -> dict[str, str]:
    """What Azure sets for a container, the deployment's own variables, and nothing of this machine's for the service.

    The one liberty: this machine is what every instance type stands for, so that the device is found and not named.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    azure = {"AML_APP_ROOT": str(code), "AZUREML_ENTRY_SCRIPT": entry_script}
    mounted = {"AZUREML_MODEL_DIR": str(model)} if model is not None else {}
    return inherited | dict(variables) | azure | mounted | {"LLAVA_DEVICE": "auto"}


def copy(source: Path, target: Path) -> Path:
    """What is downloaded into a container: the folder's content, or the file."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return target


def mount_model(source: Path, asset: str, folder: Path) -> Path:
    """AZUREML_MODEL_DIR: what was registered lies below name and version, under its own name."""
    name, _, version = asset.partition("/models/")[2].split("/")
    copy(source, folder / name / version / source.name)
    return folder / name / version


class Container:
    """One process of azmlinfsrv."""

    def __init__(self, folder: Path, entry_script: str, environment: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder = folder
        self._log = folder / "log"
        command = [sys.executable, "-m", "azureml_inference_server_http", "--port", str(self.port)]
        command += ["--entry_script", str(Path(environment["AML_APP_ROOT"]) / entry_script)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait_until_ready(self, seconds: float, is_wanted: Callable[[], bool]) -> bool:
        """By the probe's path, as long as the readiness probe allows; false when it ends, never answers, or is not
        wanted any more."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline and is_wanted():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        return False

    def log(self, lines: int) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not do."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
