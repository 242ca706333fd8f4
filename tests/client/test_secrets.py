"""Keys of endpoints: they reach the endpoint, and no process list, message, log, file of results or notebook."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava_serving.client import Endpoint, EndpointError
from llava_serving.client.credentials import KEY_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
KEY = "k3y-of-a-test-endpoint"
PNG = re.compile(r"iVBOR[A-Za-z0-9+/=\\n]+")


class Listener(ThreadingHTTPServer):
    """Answers POST with a redirect to `location`, or not before `release` is set if there is none."""

    daemon_threads = True

    def __init__(self, location: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.location = location
        self.keys: list[str | None] = []
        self.has_request, self.release = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/score"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self.server.has_request.set()
        if self.server.location is None:
            self.server.release.wait(60)
        self.send_response(302 if self.server.location else 400)
        self.send_header("Location", self.server.location or "")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.release.set()
    listener.shutdown()


def start(*words: str, key: str = KEY) -> "subprocess.Popen[str]":
    environment = os.environ | {KEY_VARIABLE: key, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "llava_serving", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


COMMANDS = {
    "score": ["--retries", "0", "a"],
    "bench": ["--num-requests", "1", "--warmup", "0", "--workload", "text"],
}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_process_list_and_no_output_shows_the_key(listener: Listener, command: str) -> None:
    process = start(command, "--url", listener.url, *COMMANDS[command])
    assert listener.has_request.wait(60)
    command_line = Path(f"/proc/{process.pid}/cmdline").read_text()
    listener.release.set()
    output, _ = process.communicate(timeout=60)
    assert listener.keys == [f"Bearer {KEY}"]
    assert listener.url in command_line
    assert KEY not in command_line + output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("key", [f"{KEY}\nX-A: b", f"{KEY}€", f"{KEY}\x7f"])
def test_no_message_about_an_invalid_key_repeats_it(listener: Listener, command: str, key: str) -> None:
    process = start(command, "--url", listener.url, *COMMANDS[command], key=key)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the key has characters that are not printable ASCII" in output
    assert KEY not in output
    assert listener.keys == []


def test_no_message_about_an_invalid_header_of_bench_repeats_it(listener: Listener) -> None:
    for header in (f"Authorization:{KEY}\r", f"Authorization {KEY}"):
        process = start("bench", "--url", listener.url, "--header", header)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "a header is NAME:VALUE in printable ASCII" in output
        assert KEY not in output


def test_a_url_with_a_password_is_refused_without_the_password() -> None:
    with pytest.raises(ValueError, match="holds a user or a password") as error:
        Endpoint(f"https://user:{KEY}@endpoint.example/score")
    assert KEY not in str(error.value)


def test_a_redirect_does_not_get_the_key() -> None:
    elsewhere = Listener()
    redirecting = Listener(elsewhere.url)
    with pytest.raises(EndpointError, match="302"):
        Endpoint(redirecting.url, KEY).score({"input_data": ["a"]})
    assert redirecting.keys == [f"Bearer {KEY}"]
    assert elsewhere.keys == []
    redirecting.shutdown()
    elsewhere.shutdown()


def test_an_endpoint_is_printed_without_its_key() -> None:
    assert KEY not in repr(Endpoint("http://127.0.0.1:1/score", KEY))


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_no_notebook_prints_or_holds_a_key(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        source = "".join(cell["source"])
        assert not re.search(r"print\([^)]*\bkey\b|^\s*key\s*$|[?&]key=|api_key=[\"'](?!none)", source, re.MULTILINE)
        # Keys of Azure are base64 or hexadecimal texts of 32 characters and more.
        texts = PNG.sub("", json.dumps(cell["outputs"]))
        assert not re.search(r"Bearer |\b(?=[A-Za-z]*[0-9])[A-Za-z0-9+/]{32,}", texts), source
