"""Right and wrong answers to questions about pictures, by the normalisation of the VQA challenge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.evaluation.vqa.match import is_match, normalize_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Yes.", "yes"),
        ("  a  red\tcircle\n", "red circle"),
        ("The circle", "circle"),
        ("Two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("left, right", "left right"),  # the comma touches a space
        ("left/right", "left right"),
        ("dont", "dont"),
        ("don't", "dont"),
        ("it\u2019s", "its"),
        ("the", ""),
    ],
)
def test_an_answer_is_normalized_by_the_rules_of_the_vqa_challenge(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


def test_an_answer_is_right_if_it_equals_one_of_the_references() -> None:
    assert is_match("A circle.", ["rectangle", "circle"])
    assert not is_match("a blue circle", ["circle"])
    assert not is_match("circle", [])


@given(st.text("abc the an two 0.,?!-'/\n\u2019", max_size=30))
def test_case_and_surrounding_space_do_not_matter(text: str) -> None:
    assert normalize_answer(f" {text.upper()}\n") == normalize_answer(text.lower())
    assert is_match(text, [text])
