"""SIGTERM to the real server process: it finishes or cuts its answers, and refuses new requests with 503."""

import contextlib
import http.client
import json
import time
from pathlib import Path

from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS
from server_requests import fixed_length_body, score_in_background, streamed_text


def test_sigterm_lets_answers_finish_within_the_drain_time(tmp_path: Path, full_text: str) -> None:
    environment = {}
    with FaultInjectionServer(tmp_path, **environment) as server, contextlib.ExitStack() as stack:
        server.wait_until_healthy()
        stack.enter_context(server.slow())
        long_stream = stack.enter_context(server.stream(fixed_length_body("The sky is", stream=True)))
        long_events = iter(long_stream)
        (long_request,) = score_in_background(server, fixed_length_body("The sky is"))
        first_long_event = next(long_events)
        keep_alive = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
        stack.callback(keep_alive.close)
        assert post_malformed_json(keep_alive)[0] == 400
        short_body = fixed_length_body("1 2 3", stream=True, max_new_tokens=15)
        short_events = iter(stack.enter_context(server.stream(short_body)))
        first_short_event = next(short_events)
        server.terminate()
        while (refusal := post_malformed_json(keep_alive))[0] == 400:  # until the server handles the signal
            time.sleep(0.01)
        assert refusal == (503, "draining")
        (late_request,) = score_in_background(server, fixed_length_body("a", max_new_tokens=1))
        short_stream_events = [first_short_event, *short_events]
        long_stream_events = [first_long_event, *long_events]
        assert short_stream_events[-2].data["finish_reason"] == "length"
        assert long_stream_events[-2].data["finish_reason"] == "deadline"  # the drain time is over
        assert short_stream_events[-1].data == long_stream_events[-1].data == "[DONE]"
        long_text = streamed_text(long_stream_events)
        assert len("The sky is") < len(long_text) < len(full_text)
        assert full_text.startswith(long_text)
        response = long_request.result(TIMEOUT_SECONDS)
        assert (response.status, response.headers["x-llava-finish-reason"]) == (200, "deadline")
        assert full_text.startswith(response.json[0]["0"])
        status = server.wait_until_ended()
        assert status == 0
        # The server refuses the late request, or ends without a response to it.
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert late_request.result(TIMEOUT_SECONDS).status == 503
        assert "Traceback" not in server.log


def post_malformed_json(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Returns the status and the error code of the response."""
    connection.request("POST", "/score", b"{", {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())["error"]["code"]
