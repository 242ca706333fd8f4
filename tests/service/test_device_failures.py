"""Steps and devices that fail in the real server process: error 500, or the end of the server."""

import time
from pathlib import Path

from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS
from server_requests import error_of, fixed_length_body, score_in_background, text_of


def test_a_failed_step_ends_only_the_requests_in_its_batch(
    single_seq_server: FaultInjectionServer, full_text: str
) -> None:
    server = single_seq_server
    body, stream_body = fixed_length_body("The sky is"), fixed_length_body("The sky is", stream=True)
    with server.slow(), server.stream(stream_body, x_ms_client_request_id="failed") as running:
        events = iter(running)
        first_event = next(events)
        assert first_event.data["0"].startswith("The sky is")
        (queued_request,) = score_in_background(server, body)
        time.sleep(0.2)
        server.enable("fail_once")
        *_, last_event = events
    assert last_event.name == "error"
    assert last_event.data["error"]["code"] == "generation_failed"
    record = server.wait_for_record("failed")
    assert (record["status"], record["code"]) == (500, "generation_failed")
    assert queued_request.result(TIMEOUT_SECONDS).json == [{"0": full_text}]
    server.enable("fail_once")
    response = server.score(body)
    assert (response.status, response.json["error"]["code"]) == (500, "generation_failed")
    assert "step fails" not in response.json["error"]["message"]
    server.enable("fail_once")
    with server.stream(stream_body) as stream:
        assert (stream.status, error_of(stream)["code"]) == (500, "generation_failed")
    assert text_of(server, body) == full_text


def test_a_broken_device_ends_the_server(tmp_path: Path) -> None:
    environment = {"LLAVA_REQUEST_TIMEOUT_SECONDS": "2"}
    with FaultInjectionServer(tmp_path, **environment) as server:
        server.wait_until_healthy()
        with server.slow(), server.stream(fixed_length_body("The sky is", stream=True)) as running:
            events = iter(running)
            first_event = next(events)
            assert first_event.data["0"].startswith("The sky is")
            (other_request,) = score_in_background(server, fixed_length_body("The sky is"))
            time.sleep(0.2)
            server.enable("broken")
            *_, last_event = events
            assert last_event.name == "error"
            assert last_event.data["error"]["code"] in ("generation_failed", "unhealthy")
            assert other_request.result(TIMEOUT_SECONDS).status in (500, 503)
        status = server.wait_until_ended()
        assert status != 0
        (reason,) = (line for line in server.log.splitlines()[-8:] if "the service ends itself" in line)
        assert "illegal memory access" in reason


def test_a_hung_step_ends_the_server_without_another_request(tmp_path: Path) -> None:
    environment = {"LLAVA_STEP_TIMEOUT_SECONDS": "2"}
    with FaultInjectionServer(tmp_path, **environment) as server:
        server.wait_until_healthy()
        server.enable("hang")
        score_in_background(server, fixed_length_body("The sky is"))
        assert server.wait_until_ended() != 0
        assert "the service ends itself: a step does not end" in server.log


def test_a_step_longer_than_the_request_timeout_does_not_end_the_server(tmp_path: Path) -> None:
    environment = {"LLAVA_REQUEST_TIMEOUT_SECONDS": "0.5"}
    with FaultInjectionServer(tmp_path, **environment) as server:
        server.wait_until_healthy()
        server.enable("hang")
        first, second = score_in_background(server, fixed_length_body("a"), fixed_length_body("b"))
        time.sleep(2)
        server.disable("hang")
        assert {first.result(TIMEOUT_SECONDS).status, second.result(TIMEOUT_SECONDS).status} <= {200, 504}
        assert server.request("GET", "/").status == 200
        assert "ends itself" not in server.log
