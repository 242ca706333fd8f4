"""Requests that the real server process refuses, and its answers to methods other than POST."""

import base64
import zlib
from typing import Any

import pytest
from server import Server
from server_requests import QUESTION, prompts_body, text_of

PNG_50000_SQUARED = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xc3\x50\x00\x00\xc3\x50\x08\x02\x00\x00\x00"
    + zlib.crc32(b"IHDR\x00\x00\xc3\x50\x00\x00\xc3\x50\x08\x02\x00\x00\x00").to_bytes(4, "big")
    + b"\x00\x00\x00\x00IEND\xaeB`\x82"
)


def body_of(image: str | None = None, text: str = "a", **parameters: Any) -> dict[str, Any]:
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


# Body, status, and the path of the offending part.
INVALID_REQUESTS = {
    "malformed JSON": (b'{"input_data":', 400, None),
    "wrong shape": ({"input_data": {"input_string": 3}}, 400, "input_data.input_string"),
    "unknown parameter": (body_of(max_new_token=3), 400, "input_data.parameters.max_new_token"),
    "parameter out of range": (body_of(temperature=-1), 400, "input_data.parameters.temperature"),
    "not base64": (body_of("%%%"), 400, "input_data.images[0]"),
    "not an image": (body_of(base64.b64encode(b"hello").decode()), 400, "input_data.images[0]"),
    "a URL": (body_of("https://example.com/a.png"), 400, "input_data.images[0]"),
    "a local path": (body_of("file:///etc/passwd"), 400, "input_data.images[0]"),
    "an image marker without an image": (body_of(None, "<image>"), 400, "input_data.input_string[0]"),
    "too many images": (
        {"input_data": {"input_string": ["a"], "images": [["AAAA"] * 17]}},
        400,
        "input_data.images[0][16]",
    ),
    "too many sequences": (body_of(n=65), 400, "input_data.parameters.n"),
    "too many prompts": ({"input_data": ["a"] * 65}, 400, "input_data"),
    "too many pixels": (body_of(base64.b64encode(PNG_50000_SQUARED).decode()), 413, "input_data.images[0]"),
    "too many bytes of an image": (body_of("A" * 30_000_000), 413, "input_data.images[0]"),
    "an empty image": (
        {"input_data": {"columns": ["image", "text"], "data": [["", "a"]]}},
        400,
        "input_data.data[0][0]",
    ),
    "an answer beyond the context": (body_of(max_tokens=1_000_000), 422, "input_data.parameters.max_tokens"),
    "a prompt beyond the context": (body_of(None, "word " * 5000), 422, "input_data.input_string[0]"),
    "a prompt of 25 MB": (body_of(None, "word " * 5_000_000), 422, "input_data.input_string[0]"),
}


@pytest.mark.parametrize("name", INVALID_REQUESTS)
def test_an_invalid_request_gets_an_error_with_its_param_and_the_next_request_succeeds(
    demo_server: Server, encoded_picture: str, expected_answer: str, name: str
) -> None:
    body, status, param = INVALID_REQUESTS[name]
    response = demo_server.score(body)
    assert response.status == status, response.body
    error = response.json["error"]
    assert set(error) == {"code", "message", "param", "type"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert "Traceback" not in error["message"]
    assert text_of(demo_server, prompts_body(QUESTION, image=encoded_picture)) == expected_answer


def test_the_422_message_contains_max_new_tokens_and_the_context_length(demo_server: Server) -> None:
    message = demo_server.score(body_of(None, "word " * 3, max_new_tokens=5000)).json["error"]["message"]
    assert "5000" in message
    assert "512" in message


def test_a_content_length_over_the_limit_gets_413_without_the_body(demo_server: Server) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": "70000000"}
    response = demo_server.request("POST", "/score", None, headers)
    assert response.status == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_another_media_type_gets_415(demo_server: Server, content_type: str) -> None:
    response = demo_server.request("POST", "/score", b"{}", {"Content-Type": content_type})
    assert (response.status, response.json["error"]["code"]) == (415, "unsupported_media_type")


def test_a_compressed_body_gets_415(demo_server: Server) -> None:
    assert demo_server.score(b"{}", Content_Encoding="gzip").status == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_gets_405(demo_server: Server, method: str) -> None:
    response = demo_server.request(method, "/score")
    assert response.status == 405
    assert response.headers["allow"] in ("POST", "GET")  # Azure's rule for /score has both
    assert response.json["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/scor", "/v1/embeddings", "/score/x", "/%0d%0a"])
def test_an_unknown_path_gets_404_with_an_error_object(demo_server: Server, path: str) -> None:
    response = demo_server.request("POST", path, b"{}")
    assert (response.status, response.json["error"]["code"]) == (404, "path_not_found")


def test_an_options_request_gets_200(demo_server: Server) -> None:
    assert demo_server.request("OPTIONS", "/score").status == 200
