"""The Scorer with settings of its own, on the random checkpoint."""

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from server import as_base64

from llava_serving.api.body import HttpRequest
from llava_serving.api.response import HttpResponse
from llava_serving.inputs.clip_preprocessor import ClipPreprocessor
from llava_serving.inputs.tokenizer import Tokenizer
from llava_serving.model.lm_head import LMHead
from llava_serving.model.model_runner import ModelRunner
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.service.startup import build_engine
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel

EOS = torch.tensor([2])
PICTURE = as_base64(Image.new("RGB", (40, 30), "red"))


def score(scorer: Scorer, text: str = "a", image: Any = None, **parameters: Any) -> HttpResponse:
    body = {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}
    return scorer.score(HttpRequest("POST", {}, io.BytesIO(json.dumps(body).encode())))


def text_of(reply: HttpResponse) -> str:
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)[0]["0"])


def error_of(reply: HttpResponse) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(reply.body)["error"]
    return error


@contextmanager
def scoring(loaded: LoadedModel, **settings: Any) -> Iterator[Scorer]:
    chosen = Settings(**settings)
    engine = build_engine(loaded, chosen)
    engine.start()
    yield Scorer(chosen, loaded, engine, RequestLog(Metrics(engine.stats)))
    engine.stop()


@pytest.fixture(scope="module")
def scorer(loaded: LoadedModel) -> Iterator[Scorer]:
    with scoring(loaded, default_max_new_tokens=7) as scorer:
        yield scorer


@pytest.mark.parametrize(("broken", "code"), [(ModelRunner, "generation_failed"), (ClipPreprocessor, "internal_error")])
def test_an_exception_ends_its_request_alone_and_shows_nothing(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, broken: type, code: str
) -> None:
    before = text_of(score(scorer, "a", PICTURE))

    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory at /secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(broken, "launch" if broken is ModelRunner else "__call__", out_of_memory)
        reply = score(scorer, "a", PICTURE)
    assert (reply.status, error_of(reply)["code"]) == (500, code)
    assert b"secret" not in reply.body
    assert text_of(score(scorer, "a", PICTURE)) == before


def test_without_max_new_tokens_the_default_counts_as_far_as_the_context_goes(
    scorer: Scorer, loaded: LoadedModel
) -> None:
    assert score(scorer, ignore_eos=True).headers["x-llava-completion-tokens"] == "7"
    room = 3
    prompt = "0" * (loaded.context_length - room - 2)  # BOS, a word mark and one token a digit
    reply = score(scorer, prompt, ignore_eos=True)
    assert reply.headers["x-llava-prompt-tokens"] == str(loaded.context_length - room)
    assert reply.headers["x-llava-completion-tokens"] == str(room)


def test_the_context_is_full_to_the_last_token_and_no_further(scorer: Scorer, loaded: LoadedModel) -> None:
    prompt = "0" * (loaded.context_length - 2)  # fills it: no room for an answer
    assert score(scorer, prompt).status == 422
    assert score(scorer, prompt[:-1], max_new_tokens=1).status == 200
    message = error_of(score(scorer, prompt[:-1], max_new_tokens=2))["message"]
    assert str(loaded.context_length) in message
    assert str(loaded.context_length + 1) in message
    assert "at least" not in message  # the prompt was counted


def test_an_image_counts_with_its_tokens(scorer: Scorer, loaded: LoadedModel) -> None:
    without = int(score(scorer, "a", template="v0").headers["x-llava-prompt-tokens"])
    with_image = int(score(scorer, "a", PICTURE).headers["x-llava-prompt-tokens"])
    assert with_image >= without + len(loaded.tokenizer.image.ids)


def test_min_new_tokens_must_fit(scorer: Scorer) -> None:
    reply = score(scorer, max_new_tokens=3, min_new_tokens=4)
    assert (reply.status, error_of(reply)["param"]) == (400, "input_data.parameters.min_new_tokens")
    assert score(scorer, min_new_tokens=8, ignore_eos=True).headers["x-llava-completion-tokens"] == "8"
    reply = score(scorer, min_new_tokens=1000)
    assert (reply.status, error_of(reply)["param"]) == (422, "input_data.parameters.min_new_tokens")


def test_the_limits_are_the_settings(loaded: LoadedModel) -> None:
    with scoring(loaded, max_images=1, max_sequences=2, max_image_pixels=1000, max_body_bytes=4000) as scorer:
        assert error_of(score(scorer, "<image><image>", [PICTURE, PICTURE]))["code"] == "too_many_images"
        assert error_of(score(scorer, n=3))["code"] == "too_many_sequences"
        assert score(scorer, "?", PICTURE).status == 413
        assert error_of(score(scorer, "b" * 4000))["code"] == "body_too_large"
        assert score(scorer, n=2, max_new_tokens=1).status == 200


def test_a_raw_continuation_goes_on_where_the_prompt_ended(scorer: Scorer) -> None:
    full = text_of(score(scorer, "The sky", seed=1, temperature=1.0))
    rest = text_of(score(scorer, "The sky", seed=1, temperature=1.0, return_full_text=False))
    assert full == "The sky" + rest


def test_full_text_of_a_question_is_the_whole_prompt(scorer: Scorer) -> None:
    full = text_of(score(scorer, "What?", PICTURE, return_full_text=True))
    assert "###Human: What?\n<image>###Assistant:" in full


def test_a_seed_is_the_same_text_alone_and_among_other_rows(scorer: Scorer) -> None:
    parameters = {"seed": 5, "temperature": 1.0}
    alone = text_of(score(scorer, "The sky", **parameters))
    body = {"input_data": {"input_string": ["Other", "The sky"], "parameters": parameters}}
    reply = scorer.score(HttpRequest("POST", {}, io.BytesIO(json.dumps(body).encode())))
    assert json.loads(reply.body)[1]["0"] == alone


def test_header_values_hold_no_commas(scorer: Scorer) -> None:
    reply = score(scorer, n=3)
    assert reply.headers["x-llava-finish-reason"].split(" ") == ["length"] * 3
    assert not any("," in value for value in reply.headers.values())


SAMPLING = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12, "ignore_eos": True}


@pytest.mark.parametrize("narrowed", [{"top_k": 1}, {"top_p": 1e-300}, {"temperature": 1e-300}, {"do_sample": False}])
def test_sampling_narrowed_to_one_token_is_greedy(scorer: Scorer, narrowed: dict[str, Any]) -> None:
    greedy = text_of(score(scorer, "The sky", max_new_tokens=12, ignore_eos=True))
    assert text_of(score(scorer, "The sky", **SAMPLING)) != greedy
    assert text_of(score(scorer, "The sky", **SAMPLING | narrowed)) == greedy


@pytest.mark.parametrize("changed", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.3}, {"repetition_penalty": 5.0}])
def test_a_sampling_parameter_changes_the_draw(scorer: Scorer, changed: dict[str, Any]) -> None:
    assert text_of(score(scorer, "The sky", **SAMPLING | changed)) != text_of(score(scorer, "The sky", **SAMPLING))


@pytest.mark.parametrize(
    "extreme", [{"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"temperature": 100}, {"temperature": 1e-4}]
)
def test_the_ends_of_a_range_are_answered(scorer: Scorer, extreme: dict[str, Any]) -> None:
    assert score(scorer, "The sky", **SAMPLING | extreme).status == 200


def test_stop_and_min_new_tokens_reach_the_engine(scorer: Scorer) -> None:
    text = text_of(score(scorer, "The sky", return_full_text=False, **SAMPLING))
    stopped = score(scorer, "The sky", return_full_text=False, stop=text[2:4], **SAMPLING)
    assert text_of(stopped) == text[: text.index(text[2:4])]
    longer = score(scorer, "The sky", stop=text[2:4], min_new_tokens=11, **SAMPLING)
    assert int(longer.headers["x-llava-completion-tokens"]) >= 11


def test_eos_ends_a_text_unless_it_is_ignored(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with likeliest_eos(monkeypatch):
        assert score(scorer, "a", max_new_tokens=5).headers["x-llava-finish-reason"] == "stop"
        assert score(scorer, "a", max_new_tokens=5, ignore_eos=True).headers["x-llava-finish-reason"] == "length"


@contextmanager
def likeliest_eos(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model whose likeliest token is always EOS."""
    logits_of = LMHead.__call__
    with monkeypatch.context() as patch:
        patch.setattr(LMHead, "__call__", lambda self, hidden: logits_of(self, hidden).index_fill(-1, EOS, 99.0))
        yield


def test_after_an_empty_prompt_the_text_starts_without_sentencepiece_s_space(scorer: Scorer) -> None:
    words = [text_of(score(scorer, "", seed=seed, temperature=1.0, max_new_tokens=1)) for seed in range(60)]
    assert any(word.strip() for word in words)
    assert not any(word.startswith(" ") and word.strip() for word in words)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=UTF-8", 'application/json; charset="utf8"; odata=verbose', ""],
)
def test_json_in_utf_8_by_any_spelling(scorer: Scorer, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = io.BytesIO(b'{"input_data": ["a"], "params": {"max_new_tokens": 1}}')
    assert scorer.score(HttpRequest("POST", headers, body)).status == 200


def test_a_long_text_is_refused_before_it_is_tokenized(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("tokenized"))
    assert score(scorer, "word " * 100_000).status == 422


def test_pictures_that_take_long_to_decode_hold_nobody_up(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, go_on = threading.Event(), threading.Event()

    def slow(self: ClipPreprocessor, *arguments: Any) -> torch.Tensor:
        decoding.set()
        assert go_on.wait(60)
        return preprocess(self, *arguments)

    preprocess = ClipPreprocessor.__call__
    monkeypatch.setattr(ClipPreprocessor, "__call__", slow)
    with ThreadPoolExecutor(8) as callers:
        pictures = [callers.submit(score, scorer, "?", PICTURE) for _ in range(8)]
        assert decoding.wait(60)
        assert score(scorer, "a", max_new_tokens=50, ignore_eos=True).status == 200
        assert not any(picture.done() for picture in pictures)
        go_on.set()
        assert {picture.result().status for picture in pictures} == {200}


def resident_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_stays_flat_over_distinct_images(demo_loaded: LoadedModel) -> None:
    """Kept pixels of the second thousand alone would be 48 MB. benchmarks/many_images.py sends ten thousand."""

    def ask(scorer: Scorer, numbers: range) -> None:
        for number in numbers:
            color = (number % 256, number // 256, 7)
            assert score(scorer, "a", as_base64(Image.new("RGB", (8, 8), color)), max_new_tokens=1).status == 200

    with scoring(demo_loaded, image_cache_size=8, kv_cache_gib=0.005) as scorer:
        ask(scorer, range(500))
        before = resident_mib()
        ask(scorer, range(500, 1500))
        assert resident_mib() - before < 16
