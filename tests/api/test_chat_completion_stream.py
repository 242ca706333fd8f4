"""Streams of OpenAI's chat.completion.chunk from the real server process."""

from typing import Any

import pytest
from server import Server, Stream
from server_requests import QUESTION, user_message


def chat_completion_body(image: str, **parameters: Any) -> dict[str, Any]:
    return {"messages": [user_message(QUESTION, image)], "model": "mine", **parameters}


def read_chunks(stream: Stream, include_usage: bool) -> list[dict[str, Any]]:
    """Returns the chunks of a stream. Asserts that each has the shape of OpenAI's."""
    assert stream.status == 200
    assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
    events = list(stream)
    assert {event.name for event in events} == {"message"}
    assert events[-1].data == "[DONE]"
    chunks = [event.data for event in events[:-1]]
    heads = {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}
    ((identifier, kind, _, model),) = heads
    assert identifier.startswith("chatcmpl-")
    assert (kind, model) == ("chat.completion.chunk", "mine")
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "choices"} | ({"usage"} if include_usage else set())
        for choice in chunk["choices"]:
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
    return chunks


def choices_of(chunks: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """Returns the choices of the sequence `index`."""
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def content_of(choices: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize(
    ("parameters", "headers"), [({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})], ids=["stream", "accept"]
)
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_chat_completion_stream_has_openai_s_chunks(
    demo_server: Server, encoded_picture: str, include_usage: bool, parameters: dict[str, Any], headers: dict[str, str]
) -> None:
    complete = demo_server.score(chat_completion_body(encoded_picture)).json
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    body = chat_completion_body(encoded_picture, **parameters, **options)
    with demo_server.stream(body, **headers) as stream:
        chunks = read_chunks(stream, include_usage)
    choices = choices_of(chunks, 0)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert content_of(choices) == complete["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    if include_usage:
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [chunks[-1]["usage"][name] for name in counts] == [complete["usage"][name] for name in counts]


def test_a_stream_with_n_3_has_the_three_texts_of_the_complete_answer(
    demo_server: Server, encoded_picture: str
) -> None:
    body = chat_completion_body(encoded_picture, n=3, temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)
    complete = demo_server.score(body).json
    with demo_server.stream(body | {"stream": True}) as stream:
        chunks = read_chunks(stream, include_usage=False)
    for expected in complete["choices"]:
        choices = choices_of(chunks, expected["index"])
        assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
        assert content_of(choices) == expected["message"]["content"]
        assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert len({choice["message"]["content"] for choice in complete["choices"]}) == 3


def test_the_chunks_have_the_logprobs_of_the_complete_answer(demo_server: Server, encoded_picture: str) -> None:
    body = chat_completion_body(encoded_picture, logprobs=True, top_logprobs=2)
    expected = demo_server.score(body).json["choices"][0]["logprobs"]["content"]
    with demo_server.stream(body | {"stream": True}) as stream:
        choices = choices_of(read_chunks(stream, include_usage=False), 0)
    streamed = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert [token["bytes"] for token in streamed] == [token["bytes"] for token in expected]
    logprobs = [token["logprob"] for token in expected]
    assert [token["logprob"] for token in streamed] == pytest.approx(logprobs, abs=1e-3)
    assert all(len(token["top_logprobs"]) == 2 for token in streamed)
