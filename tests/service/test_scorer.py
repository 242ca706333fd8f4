"""The Scorer on the random checkpoint: answers, errors, concurrency and memory."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scoring import PICTURE, error_of, running_scorer, score, score_body, text_of
from server import as_base64

from llava_serving.inputs.clip_preprocessor import ClipPreprocessor
from llava_serving.model.model_runner import ModelRunner
from llava_serving.service.scorer import Scorer
from llava_serving.weights.loader import LoadedModel


@pytest.mark.parametrize(
    ("failing_class", "code"), [(ModelRunner, "generation_failed"), (ClipPreprocessor, "internal_error")]
)
def test_an_exception_gives_500_without_its_message_and_the_next_request_succeeds(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, failing_class: type, code: str
) -> None:
    text = text_of(score(scorer, "a", PICTURE))

    def run_out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory at /secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(failing_class, "launch" if failing_class is ModelRunner else "__call__", run_out_of_memory)
        response = score(scorer, "a", PICTURE)
    assert (response.status, error_of(response)["code"]) == (500, code)
    assert b"secret" not in response.body
    assert text_of(score(scorer, "a", PICTURE)) == text


def test_an_exception_while_a_stream_is_rendered_is_an_error_event_and_a_logged_500(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug at /secret/path")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr("llava_serving.api.stream._ScoreFormat.end", fail)
        response = score(scorer, "The sky", stream=True)
        assert not isinstance(response.body, bytes)
        events = b"".join(response.body)
        response.body.close()
    assert events.count(b"event: error\n") == 1
    error = json.loads(events.rpartition(b"data: ")[2])["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert b"secret" not in events
    assert "a bug at /secret/path" in caplog.text
    (record,) = (json.loads(message) for message in caplog.messages if message.startswith("{"))
    assert (record["status"], record["code"]) == (500, "internal_error")
    assert text_of(score(scorer, "The sky"))


def test_return_full_text_false_leaves_out_a_raw_prompt(scorer: Scorer) -> None:
    full_text = text_of(score(scorer, "The sky", seed=1, temperature=1.0))
    new_text = text_of(score(scorer, "The sky", seed=1, temperature=1.0, return_full_text=False))
    assert full_text == "The sky" + new_text


def test_return_full_text_true_includes_the_prompt_in_its_template(scorer: Scorer) -> None:
    full_text = text_of(score(scorer, "What?", PICTURE, return_full_text=True))
    assert "###Human: What?\n<image>###Assistant:" in full_text


def test_a_seed_gives_the_same_text_alone_and_after_another_prompt(scorer: Scorer) -> None:
    parameters = {"seed": 5, "temperature": 1.0}
    text = text_of(score(scorer, "The sky", **parameters))
    body = {"input_data": {"input_string": ["Other", "The sky"], "parameters": parameters}}
    response = score_body(scorer, body)
    assert json.loads(response.body)[1]["0"] == text


def test_header_values_contain_no_commas(scorer: Scorer) -> None:
    response = score(scorer, n=3)
    assert response.headers["x-llava-finish-reason"].split(" ") == ["length"] * 3
    assert not any("," in value for value in response.headers.values())


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=UTF-8", 'application/json; charset="utf8"; odata=verbose', ""],
)
def test_each_spelling_of_json_in_utf_8_is_accepted(scorer: Scorer, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = {"input_data": ["a"], "params": {"max_new_tokens": 1}}
    assert score_body(scorer, body, headers).status == 200


def test_a_text_request_finishes_while_8_images_are_decoded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, released = threading.Event(), threading.Event()

    def preprocess_slowly(self: ClipPreprocessor, *arguments: Any, **options: Any) -> torch.Tensor:
        decoding.set()
        assert released.wait(60)
        return preprocess(self, *arguments, **options)

    preprocess = ClipPreprocessor.__call__
    monkeypatch.setattr(ClipPreprocessor, "__call__", preprocess_slowly)
    with ThreadPoolExecutor(8) as pool:
        image_requests = [pool.submit(score, scorer, "?", PICTURE) for _ in range(8)]
        assert decoding.wait(60)
        assert score(scorer, "a", max_new_tokens=50, ignore_eos=True).status == 200
        assert not any(request.done() for request in image_requests)
        released.set()
        assert {request.result().status for request in image_requests} == {200}


def resident_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_grows_by_less_than_16_mib_over_1000_distinct_images(demo_loaded: LoadedModel) -> None:
    """The pixels of 1,000 images would take 48 MB. benchmarks/many_images.py sends 10,000 images."""

    def send_images(scorer: Scorer, numbers: range) -> None:
        for number in numbers:
            color = (number % 256, number // 256, 7)
            assert score(scorer, "a", as_base64(Image.new("RGB", (8, 8), color)), max_new_tokens=1).status == 200

    with running_scorer(demo_loaded, image_cache_size=8, kv_cache_gib=0.005) as scorer:
        send_images(scorer, range(500))
        before = resident_mib()
        send_images(scorer, range(500, 1500))
        assert resident_mib() - before < 16
