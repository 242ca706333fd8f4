"""Azure's own MLClient, connected to a stand-in that runs as long as this process does.

For the SDK's environment, which is not the service's: imports nothing of either but azure-ai-ml.
"""

import atexit
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient
from azure.core.credentials import AccessToken, AccessTokenInfo

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"


class NobodysCredential:
    """The stand-in does not ask who calls."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken("nobody", int(time.time()) + 3600)

    def get_token_info(self, *scopes: str, **_: Any) -> AccessTokenInfo:
        return AccessTokenInfo("nobody", int(time.time()) + 3600)


def local_client(python: Path = PYTHON) -> MLClient:
    """Starts the stand-in with the service's Python, which `make serve` has set up. Raises RuntimeError."""
    if not python.exists():
        raise RuntimeError(f"{python} is missing: run `make serve` or `make test` once")
    process = subprocess.Popen(
        [python, "-m", "standin"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_stop, process)
    assert process.stdout is not None
    told = process.stdout.readline()
    if not told:
        raise RuntimeError(f"the stand-in ended with status {process.wait()}")
    return connect(**json.loads(told))


def connect(url: str, certificate: str) -> MLClient:
    """A client of a stand-in that runs already. For good: this process can reach no other cloud afterwards."""
    os.environ |= {
        "REQUESTS_CA_BUNDLE": certificate,  # the SDK
        "SSL_CERT_FILE": certificate,  # ssl's default contexts: llava_serving.client, LangChain
        "ARM_CLOUD_METADATA_URL": f"{url}/metadata/endpoints",
    }
    _resolve_localhost()
    return MLClient(
        NobodysCredential(), "00000000-0000-0000-0000-000000000000", "standin", "standin", enable_telemetry=False
    )


def _resolve_localhost() -> None:
    """Azure's storage has its account's name in the host's, and not every resolver knows RFC 6761's *.localhost."""
    resolve = socket.getaddrinfo

    def local(host: Any, *arguments: Any, **keywords: Any) -> Any:
        return resolve("localhost" if str(host).endswith(".localhost") else host, *arguments, **keywords)

    socket.getaddrinfo = local


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait()
