"""`llava-serving serve`: Azure's own inference server on score.py, on this machine.

`make serve` runs it. Without --model-dir and AZUREML_MODEL_DIR it serves the embedded demo model.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from ..errors import StartupError
from ..settings import Settings
from ..weights.model_dir import find_model

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "demo" / "pictures" / "shapes.png"
# OpenMP threads sleep when they wait: spinning, they take the cores from the web threads. deployment.yml says the same.
OPENMP_ENVIRONMENT = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=5001)
    parser.add_argument(
        "--model-dir", type=Path, help="what AZUREML_MODEL_DIR is on Azure; without either, the embedded demo model"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the server in the foreground until it ends, and returns its exit status."""
    return serve(arguments.port, arguments.model_dir)


def _port(given: str) -> int:
    port = int(given)
    if not 0 < port < 2**16:
        raise argparse.ArgumentTypeError(f"{port} is no port: those are 1 to 65535")
    return port


def serve(port: int, model_dir: Path | None) -> int:
    """Runs the server in the foreground until it ends; its exit status."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            print(
                f"llava-serving: port {port} is taken; choose another with --port (make serve PORT=...)",
                file=sys.stderr,
            )
            return 1
    command = [sys.executable, "-m", "azureml_inference_server_http", "--entry_script", str(ROOT / "score.py")]
    command += ["--port", str(port)]
    if model_dir is not None:
        command += ["--model_dir", str(model_dir)]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        environment = server_environment(os.environ)
        # The server would tell too, in the middle of a hundred lines.
        find_model(str(model_dir) if model_dir is not None else environment.get("AZUREML_MODEL_DIR"))
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    server = subprocess.Popen(command, env=environment)
    try:
        if wait_until_healthy(server, port):
            print(f"\nReady. Ask about a picture:\n\n{example(port)}\n", flush=True)
        return server.wait()
    except KeyboardInterrupt:  # the server may have had the Ctrl-C as well; a second signal does no harm
        server.terminate()
        return server.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment over the server's defaults; config files are looked for beside score.py alone.

    The server takes requests one at a time unless gunicorn has threads: as many as the settings let requests in.
    """
    threads = Settings.from_environment(environment).threads
    return (
        OPENMP_ENVIRONMENT
        | {"GUNICORN_CMD_ARGS": f"--threads {threads}", "AML_APP_ROOT": str(ROOT)}
        | dict(environment)
    )


def wait_until_healthy(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """True when the probe answers, which is after init(); False when the server ends before."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def example(port: int) -> str:
    """A command to paste into any POSIX shell, from any folder."""
    return (
        f"curl -s http://127.0.0.1:{port}/score -H 'Content-Type: application/json' -d @- <<END\n"
        '{"input_data": {"input_string": ["What is in the image?"],\n'
        f'                "images": ["$(base64 < "{PICTURE}" | tr -d \'\\n\')"]}}}}\n'
        "END"
    )
