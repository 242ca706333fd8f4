"""The stand-in and the services of its deployments are reached only from this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from standin.container import Container, environment

ROOT = Path(__file__).resolve().parents[2]
ENTRY_SCRIPT = "def init():\n    pass\n\ndef run(data):\n    return data\n"


def other_address() -> str:
    """Returns an address of this machine that is not of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address besides those of the loopback interface")
        address: str = probe.getsockname()[0]
        return address


def accepts(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(10)
        return probe.connect_ex((address, port)) == 0


def test_the_control_plane_listens_on_the_loopback_interface_only() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "standin"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = urlsplit(json.loads(process.stdout.readline())["url"]).port
        assert port is not None
        assert accepts("127.0.0.1", port)
        assert not accepts(other_address(), port)
    finally:
        process.communicate("", timeout=60)  # the stand-in ends with its standard input


@pytest.mark.slow
def test_the_service_of_a_deployment_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(ENTRY_SCRIPT)
    variables = {name: value for name, value in os.environ.items() if name == "PATH"}
    container = Container(tmp_path, "score.py", environment(tmp_path, "score.py", None, variables))
    try:
        assert container.wait_until_ready(120, lambda: True), container.log(50)
        assert accepts("127.0.0.1", container.port)
        assert not accepts(other_address(), container.port)
    finally:
        container.stop()
