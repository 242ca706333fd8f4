"""Request bodies that stall, end early, are malformed, chunked or too large, sent to the real server process."""

import contextlib
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS, Server
from server_requests import fixed_length_body, raw_post, text_of

CHUNKED_HEAD = (
    b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def read_response(connection: socket.socket) -> tuple[int, Any]:
    """Returns the status and the JSON body of the response on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def test_20_stalled_connections_delay_no_other_request(demo_server: Server) -> None:
    tracebacks = demo_server.log.count("Traceback")
    request = raw_post(json.dumps(fixed_length_body("The sky is")).encode(), request_id="half-a-body")
    with contextlib.ExitStack() as connections:
        for first_bytes in (b"", b"POST /sc", request.partition(b"Content-Length")[0], request[:-20]):
            for _ in range(5):
                connections.enter_context(demo_server.connect()).sendall(first_bytes)
        assert demo_server.request("GET", "/").status == 200
        text = text_of(demo_server, fixed_length_body("The sky is", max_new_tokens=2))
        assert text.startswith("The sky is")
        assert not demo_server.request_records("half-a-body")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(records := demo_server.request_records("half-a-body")) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [(record["status"], record["code"]) for record in records] == [(400, "incomplete_body")] * 5
    assert demo_server.request("GET", "/").status == 200
    assert demo_server.log.count("Traceback") == tracebacks


def test_a_stalled_body_gets_408(single_seq_server: FaultInjectionServer) -> None:
    request = raw_post(json.dumps(fixed_length_body("The sky is")).encode())
    with single_seq_server.connect() as connection:
        connection.sendall(request[:-20])
        status, body = read_response(connection)
    assert (status, body["error"]["code"]) == (408, "body_timeout")


@pytest.mark.parametrize(
    "body", [b"", b'{"input_data": ["a', json.dumps(fixed_length_body("a", max_new_tokens=1)).encode()]
)
def test_a_body_shorter_than_its_content_length_gets_400(demo_server: Server, body: bytes) -> None:
    with demo_server.connect() as connection:
        connection.sendall(raw_post(body, len(body) + 10))
        connection.shutdown(socket.SHUT_WR)
        status, response = read_response(connection)
    assert (status, response["error"]["code"]) == (400, "incomplete_body")


@pytest.mark.parametrize("chunks", [b"ZZ\r\n{}\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"-1\r\n", b"2\r\n{}"])
def test_a_malformed_chunked_body_gets_400(demo_server: Server, chunks: bytes) -> None:
    with demo_server.connect() as connection:
        connection.sendall(CHUNKED_HEAD + chunks)
        connection.shutdown(socket.SHUT_WR)
        status, response = read_response(connection)
    assert (status, response["error"]["code"]) == (400, "unreadable_body")


def test_a_chunked_body_gets_200(demo_server: Server) -> None:
    body = json.dumps(fixed_length_body("The sky is", max_new_tokens=1)).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (body[:7], body[7:]))
    with demo_server.connect() as connection:
        connection.sendall(CHUNKED_HEAD + chunks + b"0\r\n\r\n")
        status, _ = read_response(connection)
    assert status == 200


def test_a_client_that_sends_68_mib_can_read_its_413(demo_server: Server) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{demo_server.port}/score", bytes(68 * 2**20), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    assert error.value.code == 413
    assert json.loads(error.value.read())["error"]["code"] == "body_too_large"
