"""The request log: one line per request, without prompts and images."""

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring import PICTURE, running_scorer, score, score_body
from server import Server
from server_requests import fixed_length_body

from llava_serving.service.request_log import RequestRecord
from llava_serving.weights.loader import LoadedModel

FIELDS = {
    "request_id", "status", "code", "form", "stream", "rows", "sequences", "images", "prompt_tokens", "cached_tokens",
    "completion_tokens", "finish_reasons", "queue_ms", "ttft_ms", "total_ms",
}  # fmt: skip


def test_the_request_log_has_a_line_per_request_without_prompts_and_images(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with running_scorer(loaded) as scorer, caplog.at_level(logging.INFO, "llava_serving.service.request_log"):
        score(scorer, "a secret", PICTURE, max_new_tokens=3, n=2, ignore_eos=True)
        score(scorer, "a secret", temperature=-1)
        score_body(scorer, b'{"input_data": {"text": "secret"}}', {"x-ms-client-request-id": "mine-1"})
    answered, invalid, wrong_shape = (json.loads(line) for line in caplog.messages)
    assert answered | {"queue_ms": 0, "ttft_ms": 0, "total_ms": 0, "prompt_tokens": 0, "cached_tokens": 0} == {
        "request_id": "", "status": 200, "code": None, "form": "prompts", "stream": False, "rows": 1, "sequences": 2,
        "images": 1, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 6,
        "finish_reasons": ["length", "length"], "queue_ms": 0, "ttft_ms": 0, "total_ms": 0,
    }  # fmt: skip
    assert answered["prompt_tokens"] > loaded.tokenizer.image.count
    assert 0 < answered["ttft_ms"] <= answered["total_ms"]
    assert (invalid["status"], invalid["code"], invalid["completion_tokens"]) == (400, "invalid_parameter", 0)
    assert (wrong_shape["status"], wrong_shape["request_id"], wrong_shape["form"]) == (400, "mine-1", None)
    assert "secret" not in caplog.text
    assert PICTURE[:20] not in caplog.text


@given(header=st.text())
def test_a_request_id_has_at_most_40_letters_digits_underscores_and_hyphens(header: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,40}", RequestRecord.begin({"x-request-id": header}).request_id)


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_logs_an_answered_request_once(demo_server: Server, stream: bool) -> None:
    body = fixed_length_body("Xylophone sky", "1 2 3", max_new_tokens=4, n=2, stream=stream)
    request_id = f"record-{stream}"
    response = demo_server.score(body, x_ms_client_request_id=request_id)
    assert response.status == 200
    record = demo_server.wait_for_record(request_id)
    assert set(record) == FIELDS
    assert (record["status"], record["code"], record["form"], record["stream"]) == (200, None, "prompts", stream)
    assert (record["rows"], record["sequences"], record["images"]) == (2, 4, 0)
    assert (record["completion_tokens"], record["finish_reasons"]) == (16, ["length"] * 4)
    assert 0 <= record["queue_ms"] <= record["ttft_ms"] <= record["total_ms"]
    if not stream:
        assert record["prompt_tokens"] == int(response.headers["x-llava-prompt-tokens"])
    assert demo_server.score(fixed_length_body("a", max_new_tokens=1)).status == 200
    assert len(demo_server.request_records(request_id)) == 1
    assert "Xylophone" not in demo_server.log


def test_the_server_logs_refused_requests(demo_server: Server) -> None:
    demo_server.score(fixed_length_body("Xylophone", max_new_tokens=10**6), x_ms_client_request_id='re"fu\\sed')
    record = demo_server.wait_for_record("refused")
    assert set(record) == FIELDS
    assert (record["status"], record["code"]) == (422, "context_length_exceeded")
    assert (record["rows"], record["completion_tokens"]) == (1, 0)
    assert (record["finish_reasons"], record["ttft_ms"]) == ([], None)
    demo_server.score(b'{"Xylophone', x_ms_client_request_id="malformed")
    record = demo_server.wait_for_record("malformed")
    assert (record["status"], record["code"], record["form"]) == (400, "invalid_json", None)
    assert "Xylophone" not in demo_server.log
