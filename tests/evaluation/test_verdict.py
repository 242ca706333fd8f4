"""From a judge's words to two scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.evaluation.coco.verdict import UNPARSABLE, published_scores, tolerant_scores

SCORES = st.integers(0, 20).map(lambda half: half / 2)


@pytest.mark.parametrize(
    ("text", "published", "tolerant"),
    [
        ("8 9\nBoth are good.", (8, 9), (8, 9)),
        ("8.5 9", (8.5, 9), (8.5, 9)),
        ("8,9", (8, 9), (8, 9)),
        ("8, 9\nTwo spaces remain where the comma was.", UNPARSABLE, (8, 9)),
        ("8 9 \nA space at the end.", UNPARSABLE, (8, 9)),
        ("\n8 9", UNPARSABLE, (8, 9)),
        ("8/10 9/10", UNPARSABLE, (8, 9)),
        ("Assistant 1: 8, Assistant 2: 9", UNPARSABLE, (8, 9)),
        ("**Scores:** 8 and 9 out of 10", UNPARSABLE, (8, 9)),
        ("<think>7 or 8?\n</think>\n8 9", UNPARSABLE, (8, 9)),
        ("8", UNPARSABLE, None),
        ("8 9 7", UNPARSABLE, None),
        ("I found 2 errors in 3 lines.", UNPARSABLE, None),
        ("11 9", (11, 9), None),
        ("nan 9", UNPARSABLE, None),
        ("The first answer gets 8, the second 9.", UNPARSABLE, None),
        ("", UNPARSABLE, None),
    ],
)
def test_scores_of_a_reply(text: str, published: tuple[float, float], tolerant: tuple[float, float] | None) -> None:
    assert published_scores(text) == published
    assert tolerant_scores(text) == tolerant


@given(SCORES, SCORES, st.text())
def test_both_rules_read_two_scores_with_a_space(first: float, second: float, rest: str) -> None:
    text = f"{first:g} {second:g}\n{rest}"
    assert published_scores(text) == tolerant_scores(text) == (first, second)


@given(st.text())
def test_no_text_raises_an_error_and_scores_are_in_range(text: str) -> None:
    published_scores(text)
    scores = tolerant_scores(text)
    assert scores is None or all(0 <= score <= 10 for score in scores)
