"""The real service of one deployment: Azure's server as a process, with the environment of a container."""

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

SETTING_PREFIXES = ("LLAVA_", "AZUREML_", "AML_", "GUNICORN_", "WORKER_")
STOP_SECONDS = 30
# Azure's server has no option for its address, and listens on all of them. Here only the gateway may reach it.
LOCAL_SERVER = """
from azureml_inference_server_http import amlserver
amlserver.DEFAULT_HOST = "127.0.0.1"
amlserver.run()
"""


def environment(code: Path, entry_script: str, model: Path | None, variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of Azure and of the deployment, without this machine's settings for the service.

    LLAVA_DEVICE is always "auto", because this machine takes the place of every instance type.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}
    azure = {"AML_APP_ROOT": str(code), "AZUREML_ENTRY_SCRIPT": entry_script}
    mounted = {"AZUREML_MODEL_DIR": str(model)} if model is not None else {}
    return inherited | dict(variables) | azure | mounted | {"LLAVA_DEVICE": "auto"}


def copy_into(source: Path, target: Path) -> Path:
    """Copies a folder's content or a file into `target`, as Azure downloads it into a container. Returns `target`."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return target


def mount_model(source: Path, asset: str, folder: Path) -> Path:
    """Copies a registered model into `folder`/NAME/VERSION and returns that path, which is AZUREML_MODEL_DIR."""
    name, _, version = asset.partition("/models/")[2].split("/")
    copy_into(source, folder / name / version / source.name)
    return folder / name / version


class Container:
    """One process of azmlinfsrv, which listens on 127.0.0.1."""

    def __init__(self, folder: Path, entry_script: str, environment: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder = folder
        self._log = folder / "log"
        command = [sys.executable, "-c", LOCAL_SERVER, "--port", str(self.port)]
        command += ["--entry_script", str(Path(environment["AML_APP_ROOT"]) / entry_script)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait_until_ready(self, seconds: float, is_current: Callable[[], bool]) -> bool:
        """Waits until `/` answers, and returns whether it did.

        Gives up after `seconds`, when the process ends, or when `is_current` returns False.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline and is_current():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as response:
                    return bool(response.status == 200)
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        return False

    def log(self, lines: int) -> str:
        """Returns the last `lines` lines of the log."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after STOP_SECONDS."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
