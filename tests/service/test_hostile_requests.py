"""Requests that two readers could read as different ones, or that try to write into logs, headers and error bodies."""

import http.client
import json
import re
import socket
from pathlib import Path

import pytest
from server import ROOT, Server
from server_requests import raw_post

BODY = b'{"input_data": ["a"], "params": {"max_new_tokens": 1}}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SECOND_REQUEST = b"GET /info HTTP/1.1\r\nHost: here\r\n\r\n"
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def post(headers: bytes, body: bytes = BODY) -> bytes:
    return b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body


def get(path: str, headers: bytes = b"") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n".encode("latin-1") + headers + b"Connection: close\r\n\r\n"


def exchange(server: Server, request: bytes) -> bytes:
    """Sends the bytes, and returns what the server sends until it closes the connection."""
    with server.connect() as connection:
        connection.sendall(request)
        received = b""
        while data := connection.recv(2**16):
            received += data
    return received


AMBIGUOUS = {
    "two lengths": post(LENGTH + b"Content-Length: 5\r\n"),
    "one length twice": post(LENGTH + LENGTH),
    "a list of lengths": post(b"Content-Length: %d, 5\r\n" % len(BODY)),
    "a length with a sign": post(b"Content-Length: +%d\r\n" % len(BODY)),
    "a negative length": post(b"Content-Length: -1\r\n"),
    "a hexadecimal length": post(b"Content-Length: 0x36\r\n"),
    "a length with an underscore": post(b"Content-Length: 5_4\r\n"),
    "a length in superscript": post("Content-Length: ²\r\n".encode("latin-1")),
    "an empty length": post(b"Content-Length: \r\n"),
    "a space before the colon of a length": post(b"Content-Length : %d\r\n" % len(BODY)),
    "a length and chunks": post(LENGTH + CHUNKED, CHUNKS),
    "chunks and a length": post(CHUNKED + LENGTH, CHUNKS),
    "chunked twice": post(CHUNKED + CHUNKED, CHUNKS),
    "chunked in a list twice": post(b"Transfer-Encoding: chunked, chunked\r\n", CHUNKS),
    "gzip below chunks": post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
    "an identity encoding": post(b"Transfer-Encoding: identity\r\n" + LENGTH),
    "an unknown encoding": post(b"Transfer-Encoding: xchunked\r\n", CHUNKS),
    "an encoding behind a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS),
    "a space before the colon of an encoding": post(b"Transfer-Encoding : chunked\r\n", CHUNKS),
    "chunks in HTTP 1.0": post(CHUNKED, CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a folded header": post(b"X-A: b\r\n c\r\n" + LENGTH),
    "a folded encoding": post(b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH, CHUNKS),
    "bare line feeds": post(LENGTH, b"").replace(b"\r\n", b"\n") + BODY,
    "a line without a colon": post(LENGTH + b"garbage\r\n"),
    "two hosts": post(b"Host: there\r\n" + LENGTH),
    "two media types": post(b"Content-Type: text/plain\r\n" + LENGTH),
    "an unknown version": get("/info").replace(b"HTTP/1.1", b"HTTP/9.9"),
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_request_that_can_be_read_in_two_ways_ends_its_connection(demo_server: Server, request_bytes: bytes) -> None:
    """A proxy in front may read it the other way. So nothing behind it is taken for another caller's request."""
    received = exchange(demo_server, request_bytes + SECOND_REQUEST)
    (status,) = STATUS_LINE.findall(received)
    assert status in (b"400", b"501"), received
    assert b"model_name" not in received


def test_a_refused_body_is_not_taken_for_the_next_request(demo_server: Server) -> None:
    hidden = SECOND_REQUEST
    for path in ("/score", "/nowhere", "/"):
        request = raw_post(hidden).replace(b"POST /score", f"POST {path}".encode())
        received = exchange(demo_server, request + get("/"))
        assert b"model_name" not in received
        assert received.endswith(b"Healthy")


CONTROL_CHARACTERS = [b"\x00", b"\x01", b"\x0b", b"\x1b[31m", b"\r", b"\rSet-Cookie: a=b", b"\n"]


@pytest.mark.parametrize("name", ["x-request-id", "x-ms-request-id", "x-ms-client-request-id", "TraceId"])
@pytest.mark.parametrize("control", CONTROL_CHARACTERS)
def test_a_header_that_is_returned_holds_no_control_character(demo_server: Server, name: str, control: bytes) -> None:
    received = exchange(demo_server, get("/info", name.encode() + b": left" + control + b"right\r\n"))
    assert received.startswith(b"HTTP/1.1 400")
    assert b"left" not in received


def test_a_header_that_is_returned_is_one_header(demo_server: Server) -> None:
    value = "a\"b',; Set-Cookie: c=d {e}"
    answer = demo_server.request("GET", "/info", headers={"x-ms-client-request-id": value, "TraceId": value})
    assert answer.headers["x-ms-client-request-id"] == answer.headers["traceid"] == value
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("character", ["\r", "\x1b", "\x0b", "\x7f", "\x85", "\u2028", "\u202e"])
def test_a_path_writes_no_line_and_no_terminal_command_into_the_log(demo_server: Server, character: str) -> None:
    encoded = "".join(f"%{byte:02x}" for byte in character.encode())
    name = f"forged-{ord(character)}"
    assert demo_server.request("GET", f"/v1/models/a{encoded}{name}").status == 404
    assert demo_server.request("GET", f"/swagger.json?version={encoded}{name}").status == 404
    # Read as bytes: a text file turns a carriage return into a line feed.
    lines = [line for line in demo_server.log_bytes.decode().split("\n") if name in line]
    escaped = character.encode("unicode_escape").decode()
    assert any(f"GET /v1/models/a{escaped}{name} 404" in line for line in lines)
    assert not any(character in line for line in lines)


def test_a_line_feed_in_a_path_is_not_logged(demo_server: Server) -> None:
    assert demo_server.request("GET", "/v1/models/name%0aforged-line").status == 404
    assert "\nforged-line" not in demo_server.log


def broken_requests() -> list[bytes]:
    """Returns requests that the front end, the server or the service refuses, each in its own way."""
    bodies = [
        b"", b"{", b"[" * 100_000, b"\xff", b'{"input_data": ["\\ud800"]}', b'{"input_data": [], "params": {"x": 1}}',
        b'{"input_data": ["a"], "params": {"seed": ' + b"9" * 5000 + b"}}", '{"input_data": ["a"]}'.encode("utf-16"),
        b'{"input_data": {"columns": ["a"], "data": [["b"]]}}', b'{"messages": [{"role": "x", "content": "a"}]}',
        b'{"input_data": ["a"], "params": {"max_new_tokens": 100000}}', b'{"input_data": ["' + b"a " * 5000 + b'"]}',
    ]  # fmt: skip
    images = ["", "AAAA", "/etc/passwd", "file:///etc/passwd", "https://127.0.0.1/a.png", "data:image/png;base64,AAAA",
              "iVBORw0KGgoAAAANSUhEUgAA", "R0lGODlhAQABAAAAACw=", "/9j/4AAQSkZJRgABAQ==", "Qk0AAAAA"]  # fmt: skip
    bodies += [json.dumps({"input_data": {"input_string": ["a"], "images": [image]}}).encode() for image in images]
    paths = [
        "/nowhere", "/../../etc/passwd", "/score/", "/static/a", "/console", "/metrics", "/swagger.json?version=9",
        "/v1/models/x", "/v1/models/%ff%00", "/v1//models", "//score", "/score?__debugger__=yes&cmd=resource&f=x",
        "/" + "a" * 5000,
    ]  # fmt: skip
    methods = ["PUT", "DELETE", "TRACE", "HEAD", "CONNECT", "FOO"]
    return [
        *(raw_post(body) for body in bodies),
        *(get(path) for path in paths),
        *(get("/score").replace(b"GET", method.encode()) for method in methods),
        *(get("/info", header) for header in (b"X: " + b"a" * 9000 + b"\r\n", b"X: a\r\n" * 300, b"Expect: x\r\n")),
        get("/info", b"x-request-id: " + b"a" * 200 + b"\r\n"),
        get("/info", b"SCRIPT-NAME: /x\r\nSCRIPT_NAME: /x\r\nX-Forwarded-Host: x\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        post(CHUNKED, b"zz\r\n"), post(CHUNKED, b"5\r\n{}"), post(b"Content-Encoding: gzip\r\n" + LENGTH),
        *(request + SECOND_REQUEST for request in AMBIGUOUS.values()),
    ]  # fmt: skip


# Folders, Python's files and tracebacks, and objects with their addresses.
HOST = re.compile(rb"(?i)\.py\b|traceback|site-packages|python|werkzeug|flask|pillow|torch| object at 0x|errno")


def test_no_error_says_anything_about_the_host(demo_server: Server) -> None:
    secrets = [str(ROOT).encode(), str(Path.home()).encode() + b"/", socket.gethostname().encode(), b"/tmp/"]
    num_errors = 0
    for request in broken_requests():
        with demo_server.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
            response.begin()
            text = str(response.headers).encode() + response.read()
        num_errors += response.status >= 400
        assert not HOST.search(text), (request[:80], text)
        assert not any(secret in text for secret in secrets), (request[:80], text)
    assert num_errors > 60


def test_a_page_of_another_site_cannot_read_an_answer(demo_server: Server) -> None:
    headers = {"Origin": "https://attacker.example", "Content-Type": "application/json"}
    preflight = demo_server.request("OPTIONS", "/score", headers=headers | {"Access-Control-Request-Method": "POST"})
    answer = demo_server.request("POST", "/score", BODY, headers)
    for response in (preflight, answer):
        assert not any(name.startswith("access-control-") for name in response.headers)
    plain = demo_server.request("POST", "/score", BODY, headers | {"Content-Type": "text/plain"})
    assert plain.status == 415
