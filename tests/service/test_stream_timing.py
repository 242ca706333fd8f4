"""The time at which the events of a stream reach the client."""

from pathlib import Path

import pytest
from fault_injection import FaultInjectionServer
from server import Server
from server_requests import fixed_length_body, streamed_text


def test_a_slow_stream_sends_no_part_of_a_stop_string(single_seq_server: FaultInjectionServer) -> None:
    body = fixed_length_body("The sky is", stop=["the grass was", "grass is green. T"], stream=True)
    # Steps are slow, so that nearly every token has an event of its own.
    with single_seq_server.slow(), single_seq_server.stream(body) as stream:
        events = list(stream)
    assert streamed_text(events) == "The sky is blue and the "
    assert events[-2].data["finish_reason"] == "stop"


@pytest.mark.parametrize(("logs_responses", "is_held_back"), [("false", False), ("true", True)])
def test_a_stream_is_held_back_only_if_application_insights_logs_responses(
    tmp_path: Path, logs_responses: str, is_held_back: bool
) -> None:
    """deployment.yml sets APP_INSIGHTS_LOG_RESPONSE_ENABLED. The server works without reaching Application Insights.

    A response that is held back is in the request log before its first event arrives.
    """
    environment = {
        "AML_APP_INSIGHTS_ENABLED": "true", "AML_APP_INSIGHTS_KEY": "00000000-0000-4000-8000-000000000000",
        "APP_INSIGHTS_LOG_RESPONSE_ENABLED": logs_responses, "GUNICORN_CMD_ARGS": "--threads 4",
    }  # fmt: skip
    body = {"input_data": ["the sky is"], "params": {"max_new_tokens": 400, "ignore_eos": True, "stream": True}}
    with Server(tmp_path / "log", environment=environment) as server:
        server.wait_until_healthy()
        with server.stream(body, x_ms_client_request_id="streamed") as stream:
            next(iter(stream))
            assert bool(server.request_records("streamed")) == is_held_back
