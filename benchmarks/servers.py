"""Starts server processes to measure: the service, or the service with transformers' `generate` as its engine."""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_serving.cpu_cores import available_cores

ROOT = Path(__file__).resolve().parents[1]
ENTRY_SCRIPTS = {"engine": ROOT / "score.py", "generate": ROOT / "benchmarks" / "generate" / "score.py"}


class Server:
    """azmlinfsrv on one of ENTRY_SCRIPTS. It is healthy when the `with` block begins."""

    def __init__(self, kind: str, environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        command = [str(Path(sys.executable).parent / "azmlinfsrv"), "--entry_script", str(ENTRY_SCRIPTS[kind])]
        defaults = {
            "GUNICORN_CMD_ARGS": "--config python:gunicorn_config", "AML_APP_ROOT": str(ROOT), "GOMP_SPINCOUNT": "0",
            "OMP_WAIT_POLICY": "passive",
        }  # fmt: skip
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                env=defaults | dict(os.environ) | environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url, timeout=5):
                    return self
            except OSError:
                time.sleep(0.5)
        raise SystemExit("the server ended before it was healthy; see its log")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_mib(pid: int) -> float:
    """Returns the resident memory of the child processes of `pid`, in MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = [Path(f"/proc/{child}/status").read_text() for child in children]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024


def machine() -> dict[str, Any]:
    """Returns the CPU, the versions and the commit of a measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    packages = ("torch", "transformers", "azureml-inference-server-http", "gunicorn")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "commit": commit,
        **{package: version(package) for package in packages},
    }


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-dir", help="AZUREML_MODEL_DIR; default: the demo model")
    parser.add_argument(
        "--environment", nargs="*", default=[], metavar="NAME=VALUE", help="environment variables of both servers"
    )


def server_environment(arguments: argparse.Namespace) -> dict[str, str]:
    environment = dict(pair.split("=", 1) for pair in arguments.environment)
    return environment | ({"AZUREML_MODEL_DIR": arguments.model_dir} if arguments.model_dir else {})


def bench(url: str, *options: str) -> dict[str, Any]:
    """Runs `llava-serving bench` on a server's `/score` and returns its results."""
    command = [sys.executable, "-m", "llava_serving.tools.cli", "bench", "--url", f"{url}/score", *options]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    results: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return results
