"""`llava-serving serve`: runs Azure's own inference server with score.py on this machine.

`make serve` runs this command. Without --model-dir and AZUREML_MODEL_DIR it serves the embedded demo model.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import urllib3

from ..errors import StartupError
from ..settings import Settings
from ..weights.model_folder import find_model

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE_IMAGE = ROOT / "demo" / "pictures" / "shapes.png"
# Waiting OpenMP threads sleep. If they spin, they take the cores from the web threads. deployment.yml sets the same.
OPENMP_ENVIRONMENT = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"}
PROBE_TIMEOUT_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port_number, default=5001)
    parser.add_argument("--model-dir", type=Path, help="default: AZUREML_MODEL_DIR, else the embedded demo model")


def run(arguments: argparse.Namespace) -> int:
    """Runs the server in the foreground until it ends, and returns its exit status. Returns 1 if it cannot start."""
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    try:
        _check_port_is_free(arguments.port)
        environment = server_environment(os.environ)
        # The server reports a missing model too, but in the middle of a hundred lines.
        find_model(str(arguments.model_dir) if arguments.model_dir else environment.get("AZUREML_MODEL_DIR"))
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    server = subprocess.Popen(server_command(arguments.port, arguments.model_dir), env=environment)
    try:
        if wait_until_healthy(server, arguments.port):
            print(f"\nReady. Ask about a picture:\n\n{example_command(arguments.port)}\n", flush=True)
        return server.wait()
    except KeyboardInterrupt:  # Ctrl-C may have reached the server too; a second signal does no harm
        server.terminate()
        return server.wait()


def server_command(port: int, model_dir: Path | None) -> list[str]:
    command = [sys.executable, "-m", "azureml_inference_server_http", "--entry_script", str(ROOT / "score.py")]
    command += ["--port", str(port)]
    return command if model_dir is None else [*command, "--model_dir", str(model_dir)]


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` with defaults for the server.

    gunicorn gets as many threads as the settings admit requests: without threads it takes one request at a time. The
    server looks for its config files only beside score.py.
    """
    threads = Settings.from_environment(environment).threads
    return (
        OPENMP_ENVIRONMENT
        | {"GUNICORN_CMD_ARGS": f"--threads {threads}", "AML_APP_ROOT": str(ROOT)}
        | dict(environment)
    )


def wait_until_healthy(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Returns True when the probe answers, which is after init(). Returns False if the server ends before that."""
    while server.poll() is None:
        try:
            probe = urllib3.request("GET", f"http://127.0.0.1:{port}/", timeout=PROBE_TIMEOUT_SECONDS, retries=False)
            if probe.status == 200:
                return True
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.2)
    return False


def example_command(port: int) -> str:
    """Returns a command that works in any POSIX shell and in any folder."""
    return (
        f"curl -s http://127.0.0.1:{port}/score -H 'Content-Type: application/json' -d @- <<END\n"
        '{"input_data": {"input_string": ["What is in the image?"],\n'
        f'                "images": ["$(base64 < "{EXAMPLE_IMAGE}" | tr -d \'\\n\')"]}}}}\n'
        "END"
    )


def _port_number(argument: str) -> int:
    port = int(argument)
    if not 0 < port < 2**16:
        raise argparse.ArgumentTypeError(f"{port} is not a port number, which is 1 to 65535")
    return port


def _check_port_is_free(port: int) -> None:
    """Raises StartupError if something listens on the port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise StartupError(f"port {port} is taken; choose another with --port (make serve PORT=...)")


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
