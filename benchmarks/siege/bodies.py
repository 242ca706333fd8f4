"""The requests of the siege: good ones, drawn at random, and bad ones with the status that the contract gives them."""

import json
import random
from typing import Any

from llava_serving.bench.workload import random_image

from .caller import JSON_HEADERS, Request

# Almost all of the demo model's context of 512 tokens.
LONG_ANSWER_TOKENS = 480
CHAT = "/v1/chat/completions"


def score_body(image: str | None = None, text: str = "What is this?", **parameters: Any) -> bytes:
    data = {"input_string": [text], "images": [image], "parameters": parameters}
    return json.dumps({"input_data": data}).encode()


def small_request() -> Request:
    return Request(score_body(text="the sky is", max_new_tokens=4))


def long_request(stream: bool = False, tokens: int = LONG_ANSWER_TOKENS) -> Request:
    body = score_body(text="the sky is", max_new_tokens=tokens, ignore_eos=True, stream=stream)
    return Request(body, stream=stream)


def large_stream_request() -> Request:
    """Returns a request whose stream does not fit into the buffers of a connection."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "the sky is"}], "stream": True, "n": 4}
    options = {"logprobs": True, "top_logprobs": 20, "max_tokens": 400, "ignore_eos": True, "temperature": 1}
    return Request(json.dumps(chat | options).encode(), CHAT, stream=True)


def good_request(rng: random.Random, shared_image: str) -> Request:
    """Draws the form, the length, the picture, the sampling, the number of answers, and sometimes a deadline."""
    stream = rng.random() < 0.5
    image = rng.choice([None, shared_image, random_image(rng, rng.choice([64, 64, 64, 800]))])
    text = rng.choice(["What is in the image?", "The sky is blue and " * rng.randint(1, 10)])
    options: dict[str, Any] = {"stream": stream, "ignore_eos": True}
    if rng.random() < 0.5:
        options |= {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(1000), "n": rng.randint(1, 3)}
    if rng.random() < 0.2:
        options["stop"] = ["a", "circle"]
    tokens = rng.randint(1, 120)
    headers, expected = dict(JSON_HEADERS), {200}
    if rng.random() < 0.05:
        headers["x-ms-request-timeout-ms"] = str(rng.randint(50, 2000))
        expected.add(504)  # no token came before the deadline
    if rng.random() < 0.5:
        body, path = score_body(image, text, max_new_tokens=tokens, **options), "/score"
    else:
        body, path = _chat_body(image, text, options | {"max_tokens": tokens}), CHAT
    return Request(body, path, headers=headers, stream=stream, expected=frozenset(expected))


def bad_requests() -> list[Request]:
    """Returns one request for each kind of error of the contract that needs no load."""
    picture = random_image(random.Random("bad"), 64)
    bodies = {
        "malformed JSON": b'{"input_data": [', "no body": b"", "not an object": b"[1, 2, 3]",
        "not UTF-8": b'{"\xff": 1}',
        "an unknown field": b'{"input": ["a"]}', "no prompt": b'{"input_data": {"input_string": []}}',
        "an unknown parameter": score_body(colour=1), "a value out of range": score_body(temperature=-1),
        "a value of another type": score_body(max_new_tokens="many"), "no base64": score_body("cat.png"),
        "base64 of no picture": score_body("aGVsbG8gd29ybGQ="),
        "a cut picture": score_body(picture[: len(picture) // 8 * 4]),
        "too many images": json.dumps({"input_data": {"input_string": ["a"], "images": [picture] * 3}}).encode(),
        "an image URL": score_body("https://127.0.0.1/a.png"),
    }  # fmt: skip
    requests = [_bad(name, body, 400) for name, body in bodies.items()]
    requests.append(_bad("a context that is too long", score_body(max_new_tokens=5000), 422))
    requests.append(_bad("text", b"hello", 415, {"Content-Type": "text/plain"}))
    requests.append(_bad("gzip", b"hello", 415, JSON_HEADERS | {"Content-Encoding": "gzip"}))
    chat = {"messages": [{"role": "user", "content": "a"}], "presence_penalty": 1}
    requests.append(Request(json.dumps(chat).encode(), CHAT, expected=frozenset({400}), name="an unsupported field"))
    requests.append(Request(b"", CHAT, "GET", expected=frozenset({405}), name="GET of a chat"))
    requests.append(Request(b"{}", "/nowhere", expected=frozenset({404}), name="an unknown path"))
    return requests


def _bad(name: str, body: bytes, status: int, headers: dict[str, str] = JSON_HEADERS) -> Request:
    return Request(body, headers=headers, expected=frozenset({status}), name=name)


def _chat_body(image: str | None, text: str, options: dict[str, Any]) -> bytes:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}})
    return json.dumps({"messages": [{"role": "user", "content": parts}]} | options).encode()
