"""The Scorer's limits: the context length, and the limits that are settings."""

import pytest
from scoring import PICTURE, error_of, running_scorer, score

from llava_serving.inputs.tokenizer import Tokenizer
from llava_serving.service.scorer import Scorer
from llava_serving.weights.loader import LoadedModel


def test_max_new_tokens_defaults_to_the_setting_or_to_the_end_of_the_context(
    scorer: Scorer, loaded: LoadedModel
) -> None:
    assert score(scorer, ignore_eos=True).headers["x-llava-completion-tokens"] == "7"
    free_tokens = 3
    prompt = "0" * (loaded.context_length - free_tokens - 2)  # BOS, a word mark, and one token per digit
    response = score(scorer, prompt, ignore_eos=True)
    assert response.headers["x-llava-prompt-tokens"] == str(loaded.context_length - free_tokens)
    assert response.headers["x-llava-completion-tokens"] == str(free_tokens)


def test_a_request_gets_422_if_it_exceeds_the_context_by_one_token(scorer: Scorer, loaded: LoadedModel) -> None:
    prompt = "0" * (loaded.context_length - 2)  # fills the context, and leaves no token for the answer
    assert score(scorer, prompt).status == 422
    assert score(scorer, prompt[:-1], max_new_tokens=1).status == 200
    message = error_of(score(scorer, prompt[:-1], max_new_tokens=2))["message"]
    assert str(loaded.context_length) in message
    assert str(loaded.context_length + 1) in message
    assert "at least" not in message  # the number is exact


def test_a_long_text_gets_422_before_it_is_tokenized(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("tokenized"))
    assert score(scorer, "word " * 100_000).status == 422


def test_the_tokens_of_an_image_count_as_prompt_tokens(scorer: Scorer, loaded: LoadedModel) -> None:
    tokens_without_image = int(score(scorer, "a", template="v0").headers["x-llava-prompt-tokens"])
    tokens_with_image = int(score(scorer, "a", PICTURE).headers["x-llava-prompt-tokens"])
    assert tokens_with_image >= tokens_without_image + len(loaded.tokenizer.image.ids)


def test_min_new_tokens_gets_400_above_max_new_tokens_and_422_beyond_the_context(scorer: Scorer) -> None:
    response = score(scorer, max_new_tokens=3, min_new_tokens=4)
    assert (response.status, error_of(response)["param"]) == (400, "input_data.parameters.min_new_tokens")
    assert score(scorer, min_new_tokens=8, ignore_eos=True).headers["x-llava-completion-tokens"] == "8"
    response = score(scorer, min_new_tokens=1000)
    assert (response.status, error_of(response)["param"]) == (422, "input_data.parameters.min_new_tokens")


def test_settings_limit_images_sequences_pixels_and_the_body(loaded: LoadedModel) -> None:
    with running_scorer(loaded, max_images=1, max_sequences=2, max_image_pixels=1000, max_body_bytes=4000) as scorer:
        assert error_of(score(scorer, "<image><image>", [PICTURE, PICTURE]))["code"] == "too_many_images"
        assert error_of(score(scorer, n=3))["code"] == "too_many_sequences"
        assert score(scorer, "?", PICTURE).status == 413
        assert error_of(score(scorer, "b" * 4000))["code"] == "body_too_large"
        assert score(scorer, n=2, max_new_tokens=1).status == 200
