"""Bodies of requests to a running server, ways to send them, and the texts and errors of the responses."""

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from server import Event, Server, Stream

# Almost all of the demo model's context of 512 tokens. A slow FaultInjectionServer needs about 10 s for them.
LONG_ANSWER_TOKENS = 480
QUESTION = "What is in the image?"


def prompts_body(*texts: str, image: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Returns a request of one prompt per text, each with the same base64 `image` if there is one."""
    data: dict[str, Any] = {"input_string": list(texts), "parameters": parameters}
    return {"input_data": data | ({"images": [image] * len(texts)} if image else {})}


def fixed_length_body(*texts: str, max_new_tokens: int = LONG_ANSWER_TOKENS, **parameters: Any) -> dict[str, Any]:
    """Returns a request whose answers have `max_new_tokens` tokens unless a stop string or an error ends them."""
    return prompts_body(*texts, max_new_tokens=max_new_tokens, ignore_eos=True, **parameters)


def user_message(question: str, image: str) -> dict[str, Any]:
    """Returns a chat message: a base64 `image`, then the question."""
    image_part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    return {"role": "user", "content": [image_part, {"type": "text", "text": question}]}


def raw_post(body: bytes, content_length: int | None = None, request_id: str = "") -> bytes:
    """Returns the bytes of a POST to /score. Its Content-Length is `content_length`, by default that of the body."""
    length = len(body) if content_length is None else content_length
    head = (
        "POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"x-ms-client-request-id: {request_id}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


def score_in_background(server: Server, *bodies: dict[str, Any]) -> list[Future[Any]]:
    """Sends the requests at the same time, and returns a future of each response."""
    pool = ThreadPoolExecutor(len(bodies))
    futures = [pool.submit(server.score, body) for body in bodies]
    pool.shutdown(wait=False)
    return futures


def text_of(server: Server, body: dict[str, Any]) -> str:
    """Sends a request, and returns the text of the first prompt's first sequence."""
    response = server.score(body)
    assert response.status == 200, response.body
    return str(response.json[0]["0"])


def streamed_text(events: Iterable[Event]) -> str:
    """Returns the text of a stream of one sequence."""
    return "".join(event.data["0"] for event in events if isinstance(event.data, dict) and "0" in event.data)


def error_of(stream: Stream) -> dict[str, Any]:
    """Returns the error of a response that was requested as a stream."""
    assert stream.headers["content-type"] == "application/json"
    return dict(json.loads(stream.read())["error"])
