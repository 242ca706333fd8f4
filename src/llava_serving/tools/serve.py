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
LOCAL_HOST = "127.0.0.1"
ALL_HOSTS = ("0.0.0.0", "::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port_number, default=5001)
    parser.add_argument(
        "--host", help=f"the address to listen on, 0.0.0.0 for all; default: LLAVA_HOST, else {LOCAL_HOST}"
    )
    parser.add_argument("--model-dir", type=Path, help="default: AZUREML_MODEL_DIR, else the embedded demo model")


def run(arguments: argparse.Namespace) -> int:
    """Runs the server in the foreground until it ends, and returns its exit status. Returns 1 if it cannot start."""
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    host = arguments.host or os.environ.get("LLAVA_HOST") or LOCAL_HOST
    address = _address(host, arguments.port)
    try:
        _check_port_is_free(host, arguments.port)
        environment = server_environment(os.environ | {"LLAVA_HOST": host})
        # The server reports a missing model too, but in the middle of a hundred lines.
        find_model(str(arguments.model_dir) if arguments.model_dir else environment.get("AZUREML_MODEL_DIR"))
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    server = subprocess.Popen(server_command(arguments.port, arguments.model_dir), env=environment)
    try:
        if wait_until_healthy(server, address):
            print(f"\nReady. Ask about a picture:\n\n{example_command(address)}\n", flush=True)
        return server.wait()
    except KeyboardInterrupt:  # Ctrl-C may have reached the server too, which then ends at once
        return _stop(server)


def server_command(port: int, model_dir: Path | None) -> list[str]:
    command = [sys.executable, "-m", "azureml_inference_server_http", "--entry_script", str(ROOT / "score.py")]
    command += ["--port", str(port)]
    return command if model_dir is None else [*command, "--model_dir", str(model_dir)]


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` with defaults for the server.

    gunicorn takes its settings from gunicorn_config.py. The server looks for that file, and for its own config files,
    in AML_APP_ROOT. Raises StartupError if a setting is not valid.
    """
    Settings.from_environment(environment)
    return (
        OPENMP_ENVIRONMENT
        | {"GUNICORN_CMD_ARGS": "--config python:gunicorn_config", "AML_APP_ROOT": str(ROOT)}
        | dict(environment)
    )


def wait_until_healthy(server: "subprocess.Popen[bytes]", address: str) -> bool:
    """Returns True when the probe answers, which is after init(). Returns False if the server ends before that."""
    while server.poll() is None:
        try:
            probe = urllib3.request("GET", f"http://{address}/", timeout=PROBE_TIMEOUT_SECONDS, retries=False)
            if probe.status == 200:
                return True
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.2)
    return False


def example_command(address: str) -> str:
    """Returns a command that works in any POSIX shell and in any folder."""
    return (
        f"curl -s http://{address}/score -H 'Content-Type: application/json' -d @- <<END\n"
        '{"input_data": {"input_string": ["What is in the image?"],\n'
        f'                "images": ["$(base64 < "{EXAMPLE_IMAGE}" | tr -d \'\\n\')"]}}}}\n'
        "END"
    )


def _port_number(argument: str) -> int:
    port = int(argument)
    if not 0 < port < 2**16:
        raise argparse.ArgumentTypeError(f"{port} is not a port number, which is 1 to 65535")
    return port


def _address(host: str, port: int) -> str:
    """Returns the host and port at which this machine reaches the server."""
    reachable = LOCAL_HOST if host in ALL_HOSTS else host
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def _check_port_is_free(host: str, port: int) -> None:
    """Raises StartupError if something listens on the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if probe.connect_ex((LOCAL_HOST if host in ALL_HOSTS[:1] else host, port)) == 0:
            raise StartupError(f"port {port} is taken; choose another with --port (make serve PORT=...)")


def _stop(server: "subprocess.Popen[bytes]") -> int:
    """Lets the server end its answers. A second signal ends it at once. Returns its exit status."""
    while True:
        server.terminate()
        try:
            return server.wait()
        except KeyboardInterrupt:
            continue


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
