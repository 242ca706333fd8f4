"""Streamed answers of the real server process: the same as the whole ones, piece by piece."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from server import Event, Server, Stream, as_base64

PICTURE = Path(__file__).resolve().parents[2] / "demo" / "pictures" / "shapes.png"
QUESTION = "What is in the image?"
# More tokens than any answer of the demo model has, in as long a time as its context gives.
LONG = {"max_new_tokens": 480, "ignore_eos": True}

Texts = dict[tuple[int, int], str]  # by row and index


@pytest.fixture(scope="module")
def encoded() -> str:
    return as_base64(Image.open(PICTURE).convert("RGB"))


def prompts(*texts: str, image: str | None = None, **parameters: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"input_string": list(texts), "parameters": parameters}
    return {"input_data": data | ({"images": [image] * len(texts)} if image else {})}


def plain_list(*texts: str, **parameters: Any) -> dict[str, Any]:
    return {"input_data": list(texts), "params": parameters}


def table(image: str, *questions: str, **parameters: Any) -> dict[str, Any]:
    data = [[image, question] for question in questions]
    return {"input_data": {"columns": ["image", "direct_question"], "data": data}, "params": parameters}


def turns(image: str) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{image}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def chat(image: str, **parameters: Any) -> dict[str, Any]:
    return {"input_data": {"input_string": turns(image), "parameters": parameters}}


def completion(image: str, **parameters: Any) -> dict[str, Any]:
    return {"messages": turns(image), "model": "mine", **parameters}


def texts_of(answer: Any) -> Texts:
    """Of a whole answer in any of the service's own forms."""
    if isinstance(answer, dict):
        return {(0, 0): answer["output"]}
    return {
        (number, int(index)): text
        for number, row in enumerate(answer)
        for index, text in (row if isinstance(row, dict) and "response" not in row else {"0": _of_row(row)}).items()
    }


def _of_row(row: Any) -> str:
    return str(row["response"] if isinstance(row, dict) else row)


def read(events: Iterable[Event]) -> tuple[Texts, dict[tuple[int, int], dict[str, Any]]]:
    """The texts of a stream in the service's own shape, and how each ended; checks every event's shape and order."""
    texts: Texts = {}
    ends: dict[tuple[int, int], dict[str, Any]] = {}
    data = [event.data for event in events if event.name == "message"]
    assert data[-1] == "[DONE]"
    for told in data[:-1]:
        if "finish_reason" in told:
            assert set(told) == {"row", "index", "finish_reason", "usage"}
            place = told["row"], told["index"]
            assert place not in ends
            ends[place] = told
        else:
            ((index, piece),) = ((key, value) for key, value in told.items() if key != "row")
            place = told["row"], int(index)
            assert place not in ends, "text after the end"
            assert piece, "an event that says nothing"
            texts[place] = texts.get(place, "") + piece
    return texts, ends


def streamed(server: Server, body: dict[str, Any]) -> tuple[Texts, dict[tuple[int, int], dict[str, Any]]]:
    with server.stream(body, Accept="text/event-stream") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        return read(stream)


CASES: dict[str, Any] = {
    "a raw prompt, echoed": lambda image: prompts("The sky is"),
    "a raw prompt, not echoed": lambda image: prompts("The sky is", return_full_text=False),
    "an empty prompt": lambda image: prompts("", max_new_tokens=8, ignore_eos=True),
    "a question, stripped": lambda image: prompts(QUESTION, image=image),
    "a question, stripped before a stop string": lambda image: prompts(QUESTION, image=image, stop=["yellow"]),
    "a question, echoed": lambda image: prompts(QUESTION, image=image, return_full_text=True),
    "a plain list": lambda image: plain_list("The sky is", "1 2 3", max_new_tokens=9),
    "a table": lambda image: table(image, QUESTION, "How many shapes are in the image?"),
    "a chat": lambda image: chat(image),
    "several rows and sequences, sampled": lambda image: prompts(
        "The sky is", "1 2 3", n=2, temperature=1.0, seed=7, max_new_tokens=30, ignore_eos=True
    ),
    "bytes that are no UTF-8": lambda image: prompts("a", temperature=20.0, seed=3, max_new_tokens=100, n=3),
    "a stop string over several tokens": lambda image: prompts("The sky is", stop=["grass is gr"]),
    "stop strings that begin alike": lambda image: prompts("The sky is", stop=["the grass was", "grass is green. T"]),
    "the beginning of a stop string at the end": lambda image: prompts("The sky is", stop=["green!"], max_new_tokens=6),
    "a stop string at once": lambda image: prompts("The sky is", stop=[" "]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pieces_are_the_whole(demo_server: Server, encoded: str, case: str) -> None:
    body = CASES[case](encoded)
    whole = demo_server.score(body)
    texts, ends = streamed(demo_server, body)
    expected = texts_of(whole.json)
    assert {place: texts.get(place, "") for place in expected} == expected
    assert set(ends) == set(expected)
    assert " ".join(ends[place]["finish_reason"] for place in expected) == whole.headers["x-llava-finish-reason"]
    counts = [end["usage"] for end in ends.values()]
    assert all(count["prompt_tokens"] + count["completion_tokens"] == count["total_tokens"] for count in counts)
    assert str(sum(count["completion_tokens"] for count in counts)) == whole.headers["x-llava-completion-tokens"]
    first_of_rows = [end["usage"]["prompt_tokens"] for (_, index), end in ends.items() if index == 0]
    assert str(sum(first_of_rows)) == whole.headers["x-llava-prompt-tokens"]


def test_the_cases_are_what_they_are_called(demo_server: Server, encoded: str) -> None:
    answers = {case: texts_of(demo_server.score(CASES[case](encoded)).json) for case in CASES}
    assert "\ufffd" in "".join(answers["bytes that are no UTF-8"].values())
    assert answers["a question, stripped before a stop string"][0, 0].endswith(" a")
    assert answers["a stop string over several tokens"] == {(0, 0): "The sky is blue and the "}
    assert answers["stop strings that begin alike"] == {(0, 0): "The sky is blue and the "}
    assert answers["the beginning of a stop string at the end"][0, 0].endswith("green")
    sampled = answers["several rows and sequences, sampled"]
    assert len(set(sampled.values())) == 4


def test_the_parameter_and_the_header_ask_for_a_stream(demo_server: Server) -> None:
    for body, accept in (
        (prompts("The sky is", stream=True), "*/*"),
        (prompts("The sky is"), "text/event-stream"),
        (prompts("The sky is", stream=True), "application/json"),
        (prompts("The sky is", stream=False), "text/event-stream, */*"),
    ):
        with demo_server.stream(body, Accept=accept) as stream:
            assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
            assert "no-cache" in stream.headers["cache-control"]
            assert "content-length" not in stream.headers
            assert read(stream)[0][0, 0].startswith("The sky is blue")
    whole = demo_server.score(prompts("The sky is"), Accept="application/json, text/event-stream")
    assert whole.headers["content-type"] == "application/json"


def test_events_come_while_the_answer_is_made(demo_server: Server) -> None:
    with demo_server.stream(prompts("The sky is", stream=True, **LONG), x_ms_client_request_id="piecemeal") as stream:
        events = iter(stream)
        first = next(events)
        assert first.data["0"].startswith("The sky is")
        # Another request begins and ends, and the stream still goes on: the request log has no record of it yet.
        assert demo_server.score(prompts("1 2 3", max_new_tokens=1)).status == 200
        assert not demo_server.request_records("piecemeal")
        _, ends = read([first, *events])
    assert ends[0, 0]["usage"]["completion_tokens"] == 480
    assert demo_server.wait_for_record("piecemeal")["completion_tokens"] == 480


def test_a_connection_serves_another_request_after_a_stream(demo_server: Server) -> None:
    body = json.dumps(prompts("The sky is", stream=True)).encode()
    head = f"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with demo_server.connect() as connection, connection.makefile("rb") as file:
        for _ in range(2):
            connection.sendall(head.encode() + body)
            lines = iter(file.readline, b"0\r\n")
            assert next(lines).split()[1] == b"200"
            assert b"data: [DONE]\n" in list(lines)
            assert file.readline() == b"\r\n"


def test_a_caller_who_knows_no_chunks_gets_the_stream_too(demo_server: Server) -> None:
    body = json.dumps(prompts("The sky is", stream=True)).encode()
    with demo_server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /score HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, events = file.read().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b'data: {"row": 0, "0": "The sky is')
    assert events.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("parameters", "status", "param"),
    [
        ({"max_new_tokens": 1_000_000}, 422, "input_data.parameters.max_new_tokens"),
        ({"max_new_token": 3}, 400, "input_data.parameters.max_new_token"),
        ({"n": 65}, 400, "input_data.parameters.n"),
    ],
)
def test_what_is_refused_before_the_first_event_has_its_status(
    demo_server: Server, parameters: dict[str, Any], status: int, param: str
) -> None:
    with demo_server.stream(prompts("a", stream=True, **parameters), Accept="text/event-stream") as stream:
        assert (stream.status, stream.headers["content-type"]) == (status, "application/json")
        assert json.loads(stream.read())["error"]["param"] == param


def chunks_of(stream: Stream, include_usage: bool) -> list[dict[str, Any]]:
    """The chunks of an OpenAI stream, each of OpenAI's shape."""
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
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_chat_completion_comes_in_openai_s_chunks(demo_server: Server, encoded: str, include_usage: bool) -> None:
    whole = demo_server.score(completion(encoded)).json
    text = whole["choices"][0]["message"]["content"]
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    for asked, headers in (({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})):
        with demo_server.stream(completion(encoded, **asked, **options), **headers) as stream:
            chunks = chunks_of(stream, include_usage)
    choices = choices_of(chunks, 0)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert "".join(choice["delta"].get("content", "") for choice in choices) == text
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    if include_usage:
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        counted = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [chunks[-1]["usage"][name] for name in counted] == [whole["usage"][name] for name in counted]


def test_the_sequences_of_a_chat_completion_are_told_apart(demo_server: Server, encoded: str) -> None:
    body = completion(encoded, n=3, temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)
    whole = demo_server.score(body).json
    with demo_server.stream(body | {"stream": True}) as stream:
        chunks = chunks_of(stream, False)
    for expected in whole["choices"]:
        choices = choices_of(chunks, expected["index"])
        assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
        assert "".join(choice["delta"].get("content", "") for choice in choices) == expected["message"]["content"]
        assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


def test_logprobs_come_in_the_chunks(demo_server: Server, encoded: str) -> None:
    body = completion(encoded, logprobs=True, top_logprobs=2)
    whole = demo_server.score(body).json["choices"][0]["logprobs"]["content"]
    with demo_server.stream(body | {"stream": True}) as stream:
        choices = choices_of(chunks_of(stream, False), 0)
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert [token["bytes"] for token in told] == [token["bytes"] for token in whole]
    assert [token["logprob"] for token in told] == pytest.approx([token["logprob"] for token in whole], abs=1e-3)
    assert all(len(token["top_logprobs"]) == 2 for token in told)
