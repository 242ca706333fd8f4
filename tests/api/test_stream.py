"""Streamed answers of the real server process in the service's own form: equal to complete answers, event by event."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from server import Event, Server
from server_requests import LONG_ANSWER_TOKENS, QUESTION, fixed_length_body, prompts_body, raw_post, user_message

# By prompt index and sequence index.
Texts = dict[tuple[int, int], str]
EndEvents = dict[tuple[int, int], dict[str, Any]]


def list_body(*texts: str, **parameters: Any) -> dict[str, Any]:
    return {"input_data": list(texts), "params": parameters}


def table_body(image: str, *questions: str) -> dict[str, Any]:
    data = [[image, question] for question in questions]
    return {"input_data": {"columns": ["image", "direct_question"], "data": data}, "params": {}}


def chat_body(image: str) -> dict[str, Any]:
    return {"input_data": {"input_string": [user_message(QUESTION, image)], "parameters": {}}}


def texts_of(answer: Any) -> Texts:
    """Returns the texts of a complete answer, in any form except chat completions."""
    if isinstance(answer, dict):
        return {(0, 0): answer["output"]}
    return {
        (prompt_index, int(index)): text
        for prompt_index, item in enumerate(answer)
        for index, text in _sequences(item).items()
    }


def _sequences(item: Any) -> dict[str, str]:
    """Returns the texts of one prompt by the index of their sequence."""
    if isinstance(item, str):
        return {"0": item}
    return {"0": item["response"]} if "response" in item else item


def read_events(events: Iterable[Event]) -> tuple[Texts, EndEvents]:
    """Returns the texts of a stream and the last event of each sequence. Asserts the shape and order of the events."""
    texts: Texts = {}
    end_events: EndEvents = {}
    data = [event.data for event in events if event.name == "message"]
    assert data[-1] == "[DONE]"
    for body in data[:-1]:
        if "finish_reason" in body:
            assert set(body) == {"row", "index", "finish_reason", "usage"}
            sequence = body["row"], body["index"]
            assert sequence not in end_events
            end_events[sequence] = body
        else:
            ((index, text),) = ((key, value) for key, value in body.items() if key != "row")
            sequence = body["row"], int(index)
            assert sequence not in end_events, "text after the end of its sequence"
            assert text, "an event without text"
            texts[sequence] = texts.get(sequence, "") + text
    return texts, end_events


def stream_texts(server: Server, body: dict[str, Any]) -> tuple[Texts, EndEvents]:
    with server.stream(body, Accept="text/event-stream") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        return read_events(stream)


CASES: dict[str, Any] = {
    "a raw prompt, echoed": lambda image: prompts_body("The sky is"),
    "a raw prompt, not echoed": lambda image: prompts_body("The sky is", return_full_text=False),
    "an empty prompt": lambda image: fixed_length_body("", max_new_tokens=8),
    "a question, stripped": lambda image: prompts_body(QUESTION, image=image),
    "a question, stripped before a stop string": lambda image: prompts_body(QUESTION, image=image, stop=["yellow"]),
    "a question, echoed": lambda image: prompts_body(QUESTION, image=image, return_full_text=True),
    "a plain list": lambda image: list_body("The sky is", "1 2 3", max_new_tokens=9),
    "a table": lambda image: table_body(image, QUESTION, "How many shapes are in the image?"),
    "a chat": chat_body,
    "2 prompts with n=2, sampled": lambda image: fixed_length_body(
        "The sky is", "1 2 3", n=2, temperature=1.0, seed=7, max_new_tokens=30
    ),
    "bytes that are not UTF-8": lambda image: prompts_body("a", temperature=20.0, seed=3, max_new_tokens=100, n=3),
    "a stop string over several tokens": lambda image: prompts_body("The sky is", stop=["grass is gr"]),
    "stop strings that begin alike": lambda image: prompts_body(
        "The sky is", stop=["the grass was", "grass is green. T"]
    ),
    "the beginning of a stop string at the end": lambda image: prompts_body(
        "The sky is", stop=["green!"], max_new_tokens=6
    ),
    "a stop string at once": lambda image: prompts_body("The sky is", stop=[" "]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_has_the_texts_finish_reasons_and_usage_of_the_complete_answer(
    demo_server: Server, encoded_picture: str, case: str
) -> None:
    body = CASES[case](encoded_picture)
    complete = demo_server.score(body)
    texts, end_events = stream_texts(demo_server, body)
    expected = texts_of(complete.json)
    assert {sequence: texts.get(sequence, "") for sequence in expected} == expected
    assert set(end_events) == set(expected)
    finish_reasons = [end_events[sequence]["finish_reason"] for sequence in expected]
    assert " ".join(finish_reasons) == complete.headers["x-llava-finish-reason"]
    usages = [event["usage"] for event in end_events.values()]
    assert all(usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] for usage in usages)
    completion_tokens = sum(usage["completion_tokens"] for usage in usages)
    assert str(completion_tokens) == complete.headers["x-llava-completion-tokens"]
    prompt_tokens = sum(event["usage"]["prompt_tokens"] for (_, index), event in end_events.items() if index == 0)
    assert str(prompt_tokens) == complete.headers["x-llava-prompt-tokens"]


def test_the_answers_have_the_features_that_the_case_names_say(demo_server: Server, encoded_picture: str) -> None:
    answers = {case: texts_of(demo_server.score(CASES[case](encoded_picture)).json) for case in CASES}
    assert "\ufffd" in "".join(answers["bytes that are not UTF-8"].values())
    assert answers["a question, stripped before a stop string"][0, 0].endswith(" a")
    assert answers["a stop string over several tokens"] == {(0, 0): "The sky is blue and the "}
    assert answers["stop strings that begin alike"] == {(0, 0): "The sky is blue and the "}
    assert answers["the beginning of a stop string at the end"][0, 0].endswith("green")
    sampled = answers["2 prompts with n=2, sampled"]
    assert len(set(sampled.values())) == 4


@pytest.mark.parametrize(
    ("parameters", "accept"),
    [
        ({"stream": True}, "*/*"),
        ({}, "text/event-stream"),
        ({"stream": True}, "application/json"),
        ({"stream": False}, "text/event-stream, */*"),
    ],
)
def test_the_stream_parameter_or_the_accept_header_requests_a_stream(
    demo_server: Server, parameters: dict[str, Any], accept: str
) -> None:
    with demo_server.stream(prompts_body("The sky is", **parameters), Accept=accept) as stream:
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert "no-cache" in stream.headers["cache-control"]
        assert "content-length" not in stream.headers
        texts, _ = read_events(stream)
    assert texts[0, 0].startswith("The sky is blue")


def test_an_accept_header_with_json_and_event_stream_gets_json(demo_server: Server) -> None:
    response = demo_server.score(prompts_body("The sky is"), Accept="application/json, text/event-stream")
    assert response.headers["content-type"] == "application/json"


def test_the_first_event_arrives_before_the_answer_is_complete(demo_server: Server) -> None:
    body = fixed_length_body("The sky is", stream=True)
    with demo_server.stream(body, x_ms_client_request_id="long-stream") as stream:
        events = iter(stream)
        first = next(events)
        assert first.data["0"].startswith("The sky is")
        # Another request begins and ends. The stream is not in the request log yet, so it has not ended.
        assert demo_server.score(prompts_body("1 2 3", max_new_tokens=1)).status == 200
        assert not demo_server.request_records("long-stream")
        _, end_events = read_events([first, *events])
    assert end_events[0, 0]["usage"]["completion_tokens"] == LONG_ANSWER_TOKENS
    assert demo_server.wait_for_record("long-stream")["completion_tokens"] == LONG_ANSWER_TOKENS


def test_a_connection_serves_another_request_after_a_stream(demo_server: Server) -> None:
    body = json.dumps(prompts_body("The sky is", stream=True)).encode()
    with demo_server.connect() as connection, connection.makefile("rb") as file:
        for _ in range(2):
            connection.sendall(raw_post(body))
            lines = list(iter(file.readline, b"0\r\n"))  # until the last chunk, which is empty
            assert lines[0].split()[1] == b"200"
            assert b"data: [DONE]\n" in lines
            line_after_the_last_chunk = file.readline()
            assert line_after_the_last_chunk == b"\r\n"


def test_an_http_1_0_client_gets_a_stream_without_chunks(demo_server: Server) -> None:
    body = json.dumps(prompts_body("The sky is", stream=True)).encode()
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
def test_an_error_before_the_first_event_has_its_status_and_a_json_body(
    demo_server: Server, parameters: dict[str, Any], status: int, param: str
) -> None:
    body = prompts_body("a", stream=True, **parameters)
    with demo_server.stream(body, Accept="text/event-stream") as stream:
        assert (stream.status, stream.headers["content-type"]) == (status, "application/json")
        assert json.loads(stream.read())["error"]["param"] == param
