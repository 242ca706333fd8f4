"""Time limits of requests to the real server process: finish reason "deadline", or status 504."""

from pathlib import Path

import pytest
from fault_injection import FaultInjectionServer
from server import Server
from server_requests import LONG_ANSWER_TOKENS, error_of, fixed_length_body, streamed_text


def test_a_deadline_ends_the_answer_with_the_text_so_far(
    single_seq_server: FaultInjectionServer, full_text: str
) -> None:
    server = single_seq_server
    with server.slow():
        response = server.score(fixed_length_body("The sky is"), x_ms_request_timeout_ms="1500")
        body = fixed_length_body("The sky is", stream=True)
        with server.stream(body, x_ms_request_timeout_ms="1500") as stream:
            events = list(stream)
    assert (response.status, response.headers["x-llava-finish-reason"]) == (200, "deadline")
    assert 0 < int(response.headers["x-llava-completion-tokens"]) < LONG_ANSWER_TOKENS
    text = response.json[0]["0"]
    assert len("The sky is") < len(text) < len(full_text)
    assert full_text.startswith(text)
    assert len("The sky is") < len(streamed_text(events)) < len(full_text)
    assert full_text.startswith(streamed_text(events))
    assert events[-1].data == "[DONE]"
    assert events[-2].data["finish_reason"] == "deadline"
    assert 0 < events[-2].data["usage"]["completion_tokens"] < LONG_ANSWER_TOKENS


def test_a_deadline_in_the_queue_gives_504(single_seq_server: FaultInjectionServer) -> None:
    server = single_seq_server
    with server.slow(), server.stream(fixed_length_body("The sky is", stream=True)) as running:
        next(iter(running))
        headers = {"x_ms_request_timeout_ms": "300"}
        response = server.score(fixed_length_body("1 2 3"), **headers, x_ms_client_request_id="late")
        assert (response.status, response.json["error"]["code"]) == (504, "deadline_exceeded")
        with server.stream(fixed_length_body("1 2 3", stream=True), **headers) as stream:
            assert (stream.status, error_of(stream)["code"]) == (504, "deadline_exceeded")
    record = server.wait_for_record("late")
    assert (record["status"], record["code"], record["finish_reasons"]) == (504, "deadline_exceeded", ["deadline"])


@pytest.mark.parametrize("header", ["soon", "-1", "0", "", "1.5", "9" * 400, "9" * 5000])
def test_a_request_with_an_invalid_timeout_header_gets_200(demo_server: Server, header: str) -> None:
    body = fixed_length_body("The sky is", max_new_tokens=2)
    assert demo_server.score(body, x_ms_request_timeout_ms=header).status == 200


def test_the_setting_limits_the_deadline_of_a_longer_timeout_header(tmp_path: Path, full_text: str) -> None:
    environment = {"LLAVA_REQUEST_TIMEOUT_SECONDS": "2"}
    with FaultInjectionServer(tmp_path, **environment) as server:
        server.wait_until_healthy()
        with server.slow():
            response = server.score(fixed_length_body("The sky is"), x_ms_request_timeout_ms="170000")
    assert (response.status, response.headers["x-llava-finish-reason"]) == (200, "deadline")
    assert full_text.startswith(response.json[0]["0"])
