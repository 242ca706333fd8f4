"""Tokens to text: any split gives the same, and nothing is told that is taken back."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llava_serving.api.response import AnswerText
from llava_serving.engine.detokenizer import Detokenizer, StopText
from llava_serving.inputs.prompt import Prompt

STOPS = st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3)


def split(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@given(text=st.text("ab#", max_size=30), stops=STOPS, data=st.data())
def test_any_split_of_the_text_stops_at_the_same_place(text: str, stops: list[str], data: st.DataObject) -> None:
    stop_text = StopText(tuple(stops))
    told = ""
    for piece in split(text, data):
        stopped = stop_text.push(piece)
        told += stop_text.settle()
        assert stop_text.text.startswith(told)
        if stopped:
            break
    told += stop_text.settle(final=True)
    assert told == stop_text.text
    if not any(stop in text for stop in stops):
        assert told == text
        return
    # The push that completes a stop string ends the text before it.
    assert stop_text.stopped
    assert any(told + stop == text[: len(told) + len(stop)] for stop in stops)
    assert not any(stop in told for stop in stops)


def test_the_beginning_of_a_stop_string_waits() -> None:
    text = StopText(("###", "b#c"))
    assert [(text.push(piece), text.settle()) for piece in ("a#", "b", "#", "d")] == [
        (False, "a"), (False, "#"), (False, ""), (False, "b#d"),
    ]  # fmt: skip


@given(text=st.text(max_size=20), data=st.data())
def test_any_split_of_the_bytes_gives_the_same_characters(text: str, data: st.DataObject) -> None:
    encoded = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=6)))
    detokenizer = Detokenizer()
    pieces = [detokenizer.push(encoded[a:b]) for a, b in itertools.pairwise([0, *cuts, len(encoded)])]
    assert "".join(pieces) + detokenizer.flush() == encoded.decode()


PROMPTS = st.builds(
    Prompt, segments=st.sampled_from([("",), ("a b",), (" ",)]), is_question=st.booleans(), param=st.just("")
)


@given(prompt=PROMPTS, echo=st.booleans(), text=st.text(" ab\n", max_size=12), data=st.data())
def test_an_answer_in_pieces_is_the_answer(prompt: Prompt, echo: bool, text: str, data: st.DataObject) -> None:
    def told(pieces: list[str]) -> str:
        answer = AnswerText(prompt, echo)
        return "".join([*map(answer.push, pieces), answer.flush()])

    whole = told([text])
    assert told(split(text, data)) == whole
    if prompt.is_question:
        assert whole == (prompt.text + text if echo else text.strip())
    else:
        continuation = text if prompt.text else text.removeprefix(" ")
        assert whole == (prompt.text + continuation if echo else continuation)
