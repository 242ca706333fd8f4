"""Sampling and stop parameters of requests to the Scorer, on the random checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scoring import score, text_of

from llava_serving.model.lm_head import LMHead
from llava_serving.service.scorer import Scorer

EOS = torch.tensor([2])
SAMPLING = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12, "ignore_eos": True}


@pytest.mark.parametrize("greedy", [{"top_k": 1}, {"top_p": 1e-300}, {"temperature": 1e-300}, {"do_sample": False}])
def test_sampling_from_one_token_gives_the_greedy_text(scorer: Scorer, greedy: dict[str, Any]) -> None:
    greedy_text = text_of(score(scorer, "The sky", max_new_tokens=12, ignore_eos=True))
    assert text_of(score(scorer, "The sky", **SAMPLING)) != greedy_text
    assert text_of(score(scorer, "The sky", **SAMPLING | greedy)) == greedy_text


@pytest.mark.parametrize("changed", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.3}, {"repetition_penalty": 5.0}])
def test_each_sampling_parameter_changes_the_text(scorer: Scorer, changed: dict[str, Any]) -> None:
    assert text_of(score(scorer, "The sky", **SAMPLING | changed)) != text_of(score(scorer, "The sky", **SAMPLING))


@pytest.mark.parametrize(
    "extreme", [{"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"temperature": 100}, {"temperature": 1e-4}]
)
def test_extreme_sampling_parameters_get_200(scorer: Scorer, extreme: dict[str, Any]) -> None:
    assert score(scorer, "The sky", **SAMPLING | extreme).status == 200


def test_a_stop_string_ends_the_text_only_after_min_new_tokens(scorer: Scorer) -> None:
    text = text_of(score(scorer, "The sky", return_full_text=False, **SAMPLING))
    stopped = score(scorer, "The sky", return_full_text=False, stop=text[2:4], **SAMPLING)
    assert text_of(stopped) == text[: text.index(text[2:4])]
    longer = score(scorer, "The sky", stop=text[2:4], min_new_tokens=11, **SAMPLING)
    assert int(longer.headers["x-llava-completion-tokens"]) >= 11


def test_eos_ends_the_text_unless_ignore_eos_is_set(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with eos_has_the_largest_logit(monkeypatch):
        assert score(scorer, "a", max_new_tokens=5).headers["x-llava-finish-reason"] == "stop"
        assert score(scorer, "a", max_new_tokens=5, ignore_eos=True).headers["x-llava-finish-reason"] == "length"


@contextmanager
def eos_has_the_largest_logit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lm_head = LMHead.__call__
    with monkeypatch.context() as patch:
        patch.setattr(LMHead, "__call__", lambda self, hidden: lm_head(self, hidden).index_fill(-1, EOS, 99.0))
        yield


def test_after_an_empty_prompt_no_word_starts_with_a_space(scorer: Scorer) -> None:
    """SentencePiece decodes the first word of a text without its space."""
    words = [text_of(score(scorer, "", seed=seed, temperature=1.0, max_new_tokens=1)) for seed in range(60)]
    assert any(word.strip() for word in words)
    assert not any(word.startswith(" ") and word.strip() for word in words)
