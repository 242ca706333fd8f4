"""The command `llava-serving`.

`serve` runs Azure's own inference server on score.py, on this machine; `score` asks an endpoint; `batch` answers files
of requests; `bench` measures a server; `merge` makes one folder of a LLaMA, a LLaVA delta and a CLIP; `check` says what
a folder is and whether it can talk.
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

from .batch import command as batch
from .bench import command as bench
from .checkup import command as check
from .client import command as client
from .errors import StartupError
from .export import command as merge
from .settings import Settings
from .weights.model_dir import find_model

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "demo" / "pictures" / "shapes.png"
# OpenMP threads sleep when they wait: spinning, they take the cores from the web threads. deployment.yml says the same.
OPENMP_ENVIRONMENT = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="llava-serving", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("serve", help="serve a model on this machine through azureml-inference-server-http")
    command.add_argument("--port", type=_port, default=5001)
    command.add_argument(
        "--model-dir", type=Path, help="what AZUREML_MODEL_DIR is on Azure; without either, the embedded demo model"
    )
    command.set_defaults(run=lambda arguments: serve(arguments.port, arguments.model_dir))
    for name, module, work, about in (
        ("bench", bench, bench.run, "measure a server, this one or one that speaks OpenAI's chat completions"),
        ("score", client, client.score, "ask an endpoint, one of Azure's or this machine's"),
        ("batch", batch, batch.batch, "answer files of requests, as the batch endpoint does"),
        ("merge", merge, merge.merge, "make one model folder of the base, the delta and the vision tower"),
        ("check", check, check.check, "say what a model folder is, whether it is whole, and whether it can talk"),
    ):
        command = commands.add_parser(
            name, help=about, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=work)
    arguments = parser.parse_args()
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads has enough, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


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


if __name__ == "__main__":
    sys.exit(main())
