"""`llava-serving playground`: opens a web page on this machine to talk to an endpoint of Azure or of this machine.

  llava-serving playground
  llava-serving playground --url https://NAME.REGION.inference.ml.azure.com/score --entra

The key is read from AZUREML_ENDPOINT_KEY; --entra uses a Microsoft Entra token. Both stay in this process: the page in
the browser does not get them.
"""

import argparse
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path

from ..client.credentials import KEY_VARIABLE, entra_token
from ..client.endpoint import Endpoint
from ..playground.code_samples import Authorization, Target

ROOT = Path(__file__).resolve().parents[3]
PLAYGROUND_PYTHON = ROOT / ".venv-playground" / "bin" / "python"
DEFAULT_URL = "http://127.0.0.1:5001/score"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the scoring URI; default: {DEFAULT_URL}")
    parser.add_argument("--port", type=int, default=7860, help="the page's port on 127.0.0.1; default: 7860")
    parser.add_argument("--entra", action="store_true", help="authenticate with a Microsoft Entra token")
    parser.add_argument("--deployment", help="the deployment that answers, whatever the traffic rules say")
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS",
        help="longest time in which the endpoint sends nothing; default: 180",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 when the page has ended, 1 if it cannot start, 2 for invalid arguments."""
    key = os.environ.get(KEY_VARIABLE) or None
    token = entra_token if arguments.entra else key
    try:
        endpoint = Endpoint(arguments.url, token, arguments.deployment, arguments.timeout)
    except ValueError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("gradio") is None:
        return _run_in_own_environment()
    # gradio reads these while it is imported: no telemetry, and no look-up at Hugging Face.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    from ..playground.server import HOST, serve

    if _is_taken(HOST, arguments.port):
        print(f"llava-serving: port {arguments.port} is taken; choose another with --port", file=sys.stderr)
        return 1
    print(f"The playground for {arguments.url} is at http://{HOST}:{arguments.port}/ (Ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)  # so that temporary files are deleted
    authorization: Authorization = "entra" if arguments.entra else "key" if key else None
    serve(endpoint, Target(arguments.url, arguments.deployment, authorization), arguments.port)
    return 0


def _run_in_own_environment() -> int:
    """Replaces this process with one in the environment that has gradio. Returns 1 without that environment."""
    if not PLAYGROUND_PYTHON.exists():
        print(
            "llava-serving: the playground needs gradio, which has an environment of its own: "
            "`make .venv-playground/installed` builds it",
            file=sys.stderr,
        )
        return 1
    command = [str(PLAYGROUND_PYTHON), "-m", "llava_serving", *sys.argv[1:]]
    os.execve(command[0], command, os.environ | {"PYTHONPATH": str(ROOT / "src")})


def _is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
