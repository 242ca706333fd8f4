"""A small HTTP server in front of an engine that has none for pictures: OpenAI's chat completions, as a stream.

It runs in the engine's own Python, with the standard library, Jinja and Pillow. One chunk is sent for each token, when
the engine has it. The text of a chunk is the token's piece: nothing is decoded that could hold a token back.
"""

import argparse
import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import jinja2
from PIL import Image


@dataclass(frozen=True)
class Chat:
    """A request: the whole prompt with BOS and the image's tokens, at most one picture, and the answer's length."""

    prompt: str
    image: Image.Image | None
    tokens: int


@dataclass(frozen=True)
class Token:
    """A token of an answer, and the length of the prompt that it answers, where the engine tells it."""

    text: str
    prompt_tokens: int | None = None


class Engine(Protocol):
    def answer(self, chat: Chat) -> Iterator[Token]:
        """Yields exactly `chat.tokens` tokens, greedily chosen, each as soon as it is there. Several threads call."""
        ...


def main(load: Callable[[Path, dict[str, str]], Engine]) -> None:
    """Reads the command line, loads the engine and serves it until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chat-template", type=Path, required=True, help="a folder with chat_template.jinja")
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    arguments = parser.parse_args()
    template = jinja2.Environment().from_string((arguments.chat_template / "chat_template.jinja").read_text())
    engine = load(arguments.model, dict(arguments.option))
    server = _Server(("127.0.0.1", arguments.port), _Handler)
    server.engine, server.template = engine, template
    server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    engine: Engine
    template: jinja2.Template


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = read_chat(body, self.server.template)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        count, prompt_tokens = 0, 0
        try:
            for token in self.server.engine.answer(chat):
                count += 1
                prompt_tokens = token.prompt_tokens or prompt_tokens
                self._send({"choices": [{"index": 0, "delta": {"content": token.text or "\ufffd"}}]})
        except Exception as error:
            self._send({"error": {"message": f"{type(error).__name__}: {error}"}})
            raise
        self._send({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": prompt_tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        pass


def read_chat(body: dict[str, Any], template: jinja2.Template) -> Chat:
    parts = [part for message in body["messages"] for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    image = None
    if urls:
        image = Image.open(io.BytesIO(base64.b64decode(urls[0].split(",", 1)[1]))).convert("RGB")
    prompt = template.render(messages=body["messages"], bos_token="<s>", add_generation_prompt=True)
    return Chat(prompt, image, body["max_completion_tokens"])


def read_pieces(folder: Path) -> list[str]:
    """Returns the text of each token id, from tokenizer.json."""
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    return [piece.replace("\u2581", " ") for piece, _ in sorted(ids.items(), key=lambda item: item[1])]
