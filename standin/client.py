"""Azure's MLClient, connected to a stand-in that runs as long as this process.

Runs in the SDK's environment, which lacks the service's packages, and imports only azure-ai-ml and its dependencies.
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


class FakeCredential:
    """A credential for the stand-in, which does not check it."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken("fake token", int(time.time()) + 3600)

    def get_token_info(self, *scopes: str, **_: Any) -> AccessTokenInfo:
        return AccessTokenInfo("fake token", int(time.time()) + 3600)


def local_client(python: Path = PYTHON) -> MLClient:
    """Starts the stand-in with the service's Python, which `make serve` sets up, and returns its client.

    Raises RuntimeError if there is no such Python, or if the stand-in ends.
    """
    if not python.exists():
        raise RuntimeError(f"{python} is missing: run `make serve` or `make test` once")
    process = subprocess.Popen(
        [python, "-m", "standin"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_stop, process)
    assert process.stdout is not None
    address = process.stdout.readline()
    if not address:
        raise RuntimeError(f"the stand-in ended with status {process.wait()}")
    return connect(**json.loads(address))


def connect(url: str, certificate: str) -> MLClient:
    """Returns a client of a running stand-in. Afterwards this process can reach no other cloud."""
    os.environ |= {
        "REQUESTS_CA_BUNDLE": certificate,  # the SDK uses requests
        "SSL_CERT_FILE": certificate,  # ssl's default contexts, which llava_serving.client and LangChain use
        "ARM_CLOUD_METADATA_URL": f"{url}/metadata/endpoints",
    }
    _resolve_localhost()
    return MLClient(
        FakeCredential(), "00000000-0000-0000-0000-000000000000", "standin", "standin", enable_telemetry=False
    )


def _resolve_localhost() -> None:
    """Resolves *.localhost (RFC 6761) in this process, which not every resolver does.

    The host names of Azure's storage begin with the account's name.
    """
    getaddrinfo = socket.getaddrinfo

    def getaddrinfo_with_localhost(host: Any, *arguments: Any, **keywords: Any) -> Any:
        return getaddrinfo("localhost" if str(host).endswith(".localhost") else host, *arguments, **keywords)

    socket.getaddrinfo = getaddrinfo_with_localhost


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait()
