"""A judge over real HTTP that says what a test tells it to: `/v1/chat/completions` of an OpenAI-compatible server."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Takes the request's body and the number of earlier requests. Returns a status with the body, or None to hang up.
Script = Callable[[dict[str, Any], int], tuple[int, bytes] | None]


def completion(text: str, finish_reason: str = "stop") -> tuple[int, bytes]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "1", "object": "chat.completion", "model": "judge-2026-11", "choices": [choice], "usage": usage}
    return 200, json.dumps(body).encode()


def error(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"message": message, "type": "error"}}).encode()


def fair(body: dict[str, Any], number: int) -> tuple[int, bytes]:
    """Gives scores from 1 to 10 that depend on nothing but the question."""
    first, second = (1 + value % 10 for value in hashlib.sha256(prompt_of(body).encode()).digest()[:2])
    return completion(f"{first} {second}\nThe first answer is a reference.")


def prompt_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][1]["content"]
    return text


class ScriptedJudge(ThreadingHTTPServer):
    """Records the bodies and the keys of all requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script: Script, seconds: float = 0.0) -> None:
        self.script, self.seconds = script, seconds
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedJudge
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
        time.sleep(self.server.seconds)
        response = (404, b"") if self.path != "/v1/chat/completions" else self.server.script(body, number)
        if response is None:
            self.close_connection = True
            return
        status, content = response
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted_judge(script: Script = fair, seconds: float = 0.0) -> Iterator[ScriptedJudge]:
    judge = ScriptedJudge(script, seconds)
    thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.shutdown()
        judge.server_close()
