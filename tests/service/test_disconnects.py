"""Clients that disconnect from the real server process before the end of their answer (status 499 in the log)."""

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS, Answer, Server
from server_requests import LONG_ANSWER_TOKENS, fixed_length_body, raw_post, score_in_background, text_of


def reset(connection: socket.socket) -> None:
    """Closes with a TCP reset, as happens to a client whose process is killed while data is on its way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    """Shuts down the sending half, and leaves the receiving half open."""
    connection.shutdown(socket.SHUT_WR)


def score_when_admitted(server: Server, body: dict[str, Any]) -> Answer:
    """Sends the request again until its status is not 429, and returns that response."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (response := server.score(body)).status == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return response


def test_a_disconnect_from_a_stream_cancels_it_and_leaves_another_request_unchanged(demo_server: Server) -> None:
    text = text_of(demo_server, fixed_length_body("1 2 3", max_new_tokens=200))
    (other_request,) = score_in_background(demo_server, fixed_length_body("1 2 3", max_new_tokens=200))
    stream = demo_server.stream(fixed_length_body("The sky is", stream=True), x_ms_client_request_id="closed-stream")
    first_event = next(iter(stream))
    assert first_event.data["0"].startswith("The sky is")
    stream.close()
    record = demo_server.wait_for_record("closed-stream")
    assert (record["status"], record["code"], record["stream"]) == (499, "client_closed", True)
    assert record["completion_tokens"] < LONG_ANSWER_TOKENS
    assert other_request.result(TIMEOUT_SECONDS).json == [{"0": text}]


@pytest.mark.parametrize("disconnect", [socket.socket.close, reset, half_close])
def test_a_disconnect_from_a_stream_is_logged_with_the_tokens_so_far(
    single_seq_server: FaultInjectionServer, disconnect: Callable[[socket.socket], None]
) -> None:
    request_id = f"stream-{disconnect.__name__}"
    with single_seq_server.slow(), single_seq_server.connect() as connection:
        body = fixed_length_body("The sky is", stream=True)
        connection.sendall(raw_post(json.dumps(body).encode(), request_id=request_id))
        with connection.makefile("rb") as file:
            for _ in range(5):
                next(line for line in file if line.startswith(b"data: "))
        disconnect(connection)
        record = single_seq_server.wait_for_record(request_id)
    assert (record["status"], record["code"], record["stream"]) == (499, "client_closed", True)
    assert 0 < record["completion_tokens"] < LONG_ANSWER_TOKENS
    assert record["prompt_tokens"] > 0


def test_a_disconnect_after_extra_bytes_cancels_the_request(single_seq_server: FaultInjectionServer) -> None:
    with single_seq_server.slow():
        with single_seq_server.connect() as connection:
            body = json.dumps(fixed_length_body("The sky is")).encode()
            connection.sendall(raw_post(body, request_id="extra-bytes"))
            time.sleep(0.3)
            connection.sendall(b"\r\n")  # old browsers do this, and clients that pipeline requests send bytes too
        record = single_seq_server.wait_for_record("extra-bytes")
    assert record["status"] == 499
    assert record["completion_tokens"] < LONG_ANSWER_TOKENS


@pytest.mark.parametrize("disconnect", [socket.socket.close, reset])
def test_a_disconnect_before_the_answer_cancels_its_sequence(
    single_seq_server: FaultInjectionServer, disconnect: Callable[[socket.socket], None]
) -> None:
    with single_seq_server.slow():
        for seconds in (0.2, 0.5, 2, 5):  # a slow machine needs longer until the sequence has tokens
            request_id = f"closed-{disconnect.__name__}-{seconds}".replace(".", "-")
            connection = single_seq_server.connect()
            body = json.dumps(fixed_length_body("The sky is")).encode()
            connection.sendall(raw_post(body, request_id=request_id))
            time.sleep(seconds)
            disconnect(connection)
            record = single_seq_server.wait_for_record(request_id)
            assert (record["status"], record["code"], record["stream"]) == (499, "client_closed", False)
            if record["completion_tokens"]:
                break
    assert 0 < record["completion_tokens"] < LONG_ANSWER_TOKENS
    assert record["finish_reasons"] == ["cancelled"]
    assert score_when_admitted(single_seq_server, fixed_length_body("a", "b", max_new_tokens=1)).status == 200


def test_a_disconnect_in_the_queue_makes_room_for_another_request(single_seq_server: FaultInjectionServer) -> None:
    running_body = fixed_length_body("The sky is", stream=True)
    with single_seq_server.slow(), single_seq_server.stream(running_body) as running:
        events = iter(running)
        next(events)
        queued = single_seq_server.connect()
        body = json.dumps(fixed_length_body("1 2 3")).encode()
        queued.sendall(raw_post(body, request_id="closed-in-queue"))
        time.sleep(0.2)
        queued.close()
        record = single_seq_server.wait_for_record("closed-in-queue")
        assert (record["status"], record["completion_tokens"], record["ttft_ms"]) == (499, 0, None)
        (next_request,) = score_in_background(single_seq_server, fixed_length_body("1 2 3", max_new_tokens=2))
        single_seq_server.disable("slow")
        *_, last_event = events
        assert last_event.data == "[DONE]"
        assert next_request.result(TIMEOUT_SECONDS).status == 200


def test_18_threads_still_answer_after_40_disconnects(single_seq_server: FaultInjectionServer) -> None:
    with single_seq_server.slow():
        for number in range(20):
            body = fixed_length_body("The sky is", stream=True)
            stream = single_seq_server.stream(body, x_ms_client_request_id=f"stream-{number}")
            assert stream.status == 200
            next(iter(stream))
            stream.close()
            connection = single_seq_server.connect()
            encoded = json.dumps(fixed_length_body("The sky is")).encode()
            connection.sendall(raw_post(encoded, request_id=f"immediate-{number}"))
            connection.close()
            for request_id in (f"stream-{number}", f"immediate-{number}"):
                record = single_seq_server.wait_for_record(request_id)
                assert record["status"] == 499
                assert record["completion_tokens"] < LONG_ANSWER_TOKENS
    body = fixed_length_body("The sky is", "1 2 3", max_new_tokens=1)
    assert score_when_admitted(single_seq_server, body).status == 200
