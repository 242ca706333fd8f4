"""A server of OpenAI's chat completions over real HTTP, whose answers a function gives."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

Reply = Callable[[str], str | int]


class ChatServer(ThreadingHTTPServer):
    """Answers a question with the reply's text, or with an error of the reply's status. Keeps bodies and keys."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.bodies.append(body)
        self.server.authorizations.append(self.headers["Authorization"])
        reply = self.server.reply(body["messages"][-1]["content"])
        status = reply if isinstance(reply, int) else 200
        content: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": reply}}]}
        if status != 200:
            content = {"error": {"code": "busy", "message": "later"}}
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing."""
