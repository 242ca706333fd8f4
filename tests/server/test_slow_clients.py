"""Connections that say nothing, little, or more than they should, against the real server process."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server import TIMEOUT_SECONDS, Server
from server_requests import fixed_length_body, raw_post, text_of

pytestmark = pytest.mark.slow

MAX_CONNECTIONS = 60
MAX_RECEIVED_BYTES = 2 * 1024 * 1024
BODY = json.dumps(fixed_length_body("The sky is", max_new_tokens=2)).encode()
HALF_HEAD = raw_post(BODY).partition(b"Content-Length")[0]
HALF_BODY = raw_post(BODY)[:-20]
HEAD = b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Returns a server with few connections and short time limits."""
    environment = {
        "LLAVA_MAX_CONNECTIONS": str(MAX_CONNECTIONS),
        "LLAVA_MAX_RECEIVED_BYTES": str(MAX_RECEIVED_BYTES),
        "LLAVA_READ_TIMEOUT_SECONDS": "2",
        "LLAVA_RECEIVE_TIMEOUT_SECONDS": "4",
        "LLAVA_WRITE_TIMEOUT_SECONDS": "1",
    }
    with Server(tmp_path_factory.mktemp("server") / "log", environment=environment) as server:
        server.wait_until_healthy()
        yield server


def response_on(connection: socket.socket) -> tuple[int, str]:
    """Returns the status and the error code of the response on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())["error"]["code"]


def test_half_open_connections_of_three_kinds_delay_neither_the_probe_nor_a_request(server: Server) -> None:
    with contextlib.ExitStack() as connections:
        for first_bytes in (b"", HALF_HEAD, HALF_BODY) * MAX_CONNECTIONS:
            connections.enter_context(server.connect()).sendall(first_bytes)
        began = time.monotonic()
        assert server.request("GET", "/").status == 200
        assert text_of(server, fixed_length_body("The sky is", max_new_tokens=2)).startswith("The sky is")
        assert time.monotonic() - began < 5
    assert "Traceback" not in server.log


def test_a_stalled_body_gets_408_from_the_service_and_a_stalled_head_from_the_front(server: Server) -> None:
    with server.connect() as body, server.connect() as head, server.connect() as silent:
        body.sendall(HALF_BODY)
        head.sendall(HALF_HEAD)
        assert response_on(body) == (408, "body_timeout")
        assert response_on(head) == (408, "headers_timeout")
        assert silent.recv(1) == b""


@pytest.mark.parametrize(("start", "code"), [(HALF_HEAD, "headers_timeout"), (HALF_BODY[:-20], "body_timeout")])
def test_a_request_that_drips_gets_408_in_the_end(server: Server, start: bytes, code: str) -> None:
    with server.connect() as connection:
        connection.sendall(start)
        connection.settimeout(0.3)
        began = time.monotonic()
        answer = b""
        while not answer and time.monotonic() - began < TIMEOUT_SECONDS:
            with contextlib.suppress(OSError):
                connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
        connection.settimeout(TIMEOUT_SECONDS)
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert code.encode() in answer
    assert time.monotonic() - began > 3  # bytes came all the time


def test_large_bodies_beyond_the_limit_wait_and_are_all_answered(server: Server) -> None:
    padded = json.dumps(fixed_length_body("a", max_new_tokens=1)).encode() + b" " * (2 * MAX_RECEIVED_BYTES)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.score, padded) for _ in range(8)]
        small = server.score(BODY)  # passes the large ones
        assert small.status == 200
        assert [answer.result(TIMEOUT_SECONDS).status for answer in answers] == [200] * 8


def test_a_client_that_expects_100_continue_sends_its_body_after_it(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_expects_100_continue_for_too_much_gets_413_instead(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n")
        assert response_on(connection) == (413, "body_too_large")


def test_two_requests_in_one_piece_get_two_answers_in_order(server: Server) -> None:
    bodies = [json.dumps(fixed_length_body(text, max_new_tokens=1, return_full_text=True)).encode() for text in "ab"]
    with server.connect() as connection:
        connection.sendall(b"".join(map(raw_post, bodies)))
        for text in "ab":
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert json.loads(response.read())[0]["0"].startswith(text)


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"NOT HTTP\r\n\r\n", (400, "malformed_request")),
        (HEAD + b"X-Long: " + b"a" * 70_000, (431, "headers_too_large")),
        (HEAD + b"X-Long: " + b"a" * 10_000 + b"\r\n\r\n", (431, "headers_too_large")),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", (414, "request_line_too_long")),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", (400, "malformed_request")),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "malformed_request")),
        (HEAD + b"Expect: payment\r\n\r\n", (417, "unsupported_expectation")),
    ],
)
def test_malformed_http_gets_the_service_s_error_object(
    server: Server, request_bytes: bytes, expected: tuple[int, str]
) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes)
        assert response_on(connection) == expected


def test_an_idle_connection_is_closed_and_a_busy_one_is_kept(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
    for _ in range(3):
        connection.request("POST", "/score", BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        sock = connection.sock
    assert sock is not None
    assert sock.recv(1) == b""  # gunicorn's keepalive, 2 s, is over
    connection.close()


def test_a_server_keeps_no_connection_of_clients_that_left(server: Server) -> None:
    for _ in range(3 * MAX_CONNECTIONS):
        with server.connect() as connection:
            connection.sendall(HALF_BODY)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (established := num_connections(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert established == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_its_answer_is_cut_off(server: Server, stream: bool) -> None:
    request_id = f"unread-{stream}"
    cut_off = server.log.count("did not read its answer")
    body = {
        "messages": [{"role": "user", "content": "a"}], "n": 16, "max_tokens": 400, "ignore_eos": True,
        "temperature": 1, "seed": 1, "logprobs": True, "top_logprobs": 20, "stream": stream,
    }  # fmt: skip
    request = raw_post(json.dumps(body).encode(), request_id=request_id).replace(b"/score", b"/v1/chat/completions", 1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request)
        record = server.wait_for_record(request_id)
        assert record["status"] == (499 if stream else 200)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while server.log.count("did not read its answer") == cut_off:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        connection.settimeout(TIMEOUT_SECONDS)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
    assert len(content) < int(length) if length else b"data: [DONE]" not in content
    assert "Traceback" not in server.log


def num_connections(server: Server) -> int:
    """Returns how many sockets of the server's port have a client."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{server.port:04X}") and row[3] == "01" for row in rows)
