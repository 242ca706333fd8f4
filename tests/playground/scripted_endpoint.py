"""An endpoint whose behavior a test chooses: it wants a key, is busy, fails, writes slowly, or never begins."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "key-that-no-browser-may-see"
HOSTILE = "![pixel](http://other.example/pixel.png) <img src=x onerror=\"document.title='changed'\"> seen"
WORDS = 200
WORD_SECONDS = 0.1


class ScriptedEndpoint(ThreadingHTTPServer):
    """Answers each request as the next of `behaviors` says, and as "stream" when there are no more.

    "busy" is a 429 with Retry-After. "gateway timeout" is a front end's 504, and "deadline" is the service's own.
    "reset" closes the connection. "stream" writes a word every tenth of a second. "silence" sends nothing.
    "hostile" writes Markdown and HTML that would load an image of another host and run a script.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/score"
        self.behaviors: list[str] = []
        self.bodies: list[Any] = []
        self.disconnected = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedEndpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        endpoint = self.server
        endpoint.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._refuse(401, "invalid_key", "the key is wrong")
            return
        behavior = endpoint.behaviors.pop(0) if endpoint.behaviors else "stream"
        if behavior == "busy":
            self._refuse(429, "overloaded", "the queue is full")
        elif behavior == "gateway timeout":
            self._send(504, b"upstream request timeout")
        elif behavior == "deadline":
            self._refuse(504, "deadline_exceeded", "no token was generated before the deadline")
        elif behavior == "reset":
            self.close_connection = True
        elif behavior == "silence":
            self._wait_for_disconnect()
        else:
            self._stream([HOSTILE] if behavior == "hostile" else [f" word{number}" for number in range(WORDS)])

    def _refuse(self, status: int, code: str, message: str) -> None:
        error = {"code": code, "message": message, "param": None, "type": "server_error"}
        self._send(status, json.dumps({"error": error}).encode(), **{"Retry-After": "2"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, words: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in _events(words):
                self.wfile.write(b"%x\r\ndata: %b\n\n\r\n" % (len(event) + 8, event))
                time.sleep(WORD_SECONDS)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.disconnected.set()

    def _wait_for_disconnect(self) -> None:
        self.connection.settimeout(30)
        if self.connection.recv(1) == b"":
            self.server.disconnected.set()

    def log_message(self, *arguments: object) -> None:
        pass


def _events(words: list[str]) -> Iterator[bytes]:
    for word in words:
        yield json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}).encode()
    yield b"[DONE]"
