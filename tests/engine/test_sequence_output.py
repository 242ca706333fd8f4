"""Tokens to text: the text is the same for every split into tokens, and emitted text is never taken back."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llava_serving.api.answer_text import AnswerText
from llava_serving.engine.detokenizer import Detokenizer, StoppedText
from llava_serving.inputs.prompt import Prompt

STOPS = st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3)


def split(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@given(text=st.text("ab#", max_size=30), stops=STOPS, data=st.data())
def test_emitted_text_ends_before_the_stop_string_for_any_split(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stopped = StoppedText(tuple(stops))
    emitted = ""
    for piece in split(text, data):
        is_stopped = stopped.push(piece)
        emitted += stopped.emit()
        assert stopped.text.startswith(emitted)
        if is_stopped:
            break
    emitted += stopped.emit(final=True)
    assert emitted == stopped.text
    if not any(stop in text for stop in stops):
        assert emitted == text
        return
    # The push that completes a stop string ends the text before it.
    assert stopped.is_stopped
    assert any(emitted + stop == text[: len(emitted) + len(stop)] for stop in stops)
    assert not any(stop in emitted for stop in stops)


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    text = StoppedText(("###", "b#c"))
    assert [(text.push(piece), text.emit()) for piece in ("a#", "b", "#", "d")] == [
        (False, "a"), (False, "#"), (False, ""), (False, "b#d"),
    ]  # fmt: skip


@given(text=st.text(max_size=20), data=st.data())
def test_any_split_of_utf_8_bytes_decodes_to_the_same_text(text: str, data: st.DataObject) -> None:
    encoded = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=6)))
    detokenizer = Detokenizer()
    pieces = [detokenizer.push(encoded[a:b]) for a, b in itertools.pairwise([0, *cuts, len(encoded)])]
    assert "".join(pieces) + detokenizer.flush() == encoded.decode()


PROMPTS = st.builds(
    Prompt, segments=st.sampled_from([("",), ("a b",), (" ",)]), in_template=st.booleans(), path=st.just("")
)


@given(prompt=PROMPTS, echo=st.booleans(), text=st.text(" ab\n", max_size=12), data=st.data())
def test_an_answer_in_pieces_equals_the_whole_answer(
    prompt: Prompt, echo: bool, text: str, data: st.DataObject
) -> None:
    def emitted(pieces: list[str]) -> str:
        answer = AnswerText(prompt, echo)
        return "".join([*map(answer.push, pieces), answer.flush()])

    whole = emitted([text])
    assert emitted(split(text, data)) == whole
    if prompt.in_template:
        assert whole == (prompt.text + text if echo else text.strip())
    else:
        continuation = text if prompt.text else text.removeprefix(" ")
        assert whole == (prompt.text + continuation if echo else continuation)
