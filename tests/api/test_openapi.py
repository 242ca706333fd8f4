"""swagger3.json, which the server returns: compared with the models, the parser and the answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate
from server import Server

from llava_serving.api.openapi import updated
from llava_serving.api.request_parser import RequestParser
from llava_serving.api.response import error_body
from llava_serving.errors import BadRequest, RequestError
from llava_serving.inputs.templates import V0

ROOT = Path(__file__).resolve().parents[2]
FILE = json.loads((ROOT / "swagger3.json").read_text("utf-8"))
QUESTION = {
    "role": "user",
    "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "x"}}],
}
BODIES: list[dict[str, Any]] = [
    {"input_data": {"input_string": ["a", "b"], "images": [None, ["x", "y"]], "parameters": {"temperature": 0.5}}},
    {"inputs": {"input_string": "a", "images": "x"}, "params": {"stop": "###", "max_tokens": 3, "seed": None}},
    {"input_data": ["a"], "params": {"top_p": 0.5, "n": 1}},
    {"input_data": {"columns": ["image", "text"], "index": [0], "data": [["x", "?"]], "params": None}},
    {"input_data": {"input_string": [{"role": "user", "content": "?"}]}, "parameters": {"stop": ["a", "b"]}},
    {"messages": [{"role": "system", "content": "s"}, QUESTION], "model": "m", "logprobs": True, "top_logprobs": 3},
    {"messages": [QUESTION], "stream": True, "stream_options": {"include_usage": True}, "user": None, "max_tokens": 1},
]


def validator(name: str) -> Any:
    return OAS30Validator({"$ref": f"#/components/schemas/{name}", "components": FILE["components"]})


def matches_description(body: Any) -> bool:
    forms = ("Prompts", "List", "Table", "Chat", "ChatCompletion")
    return any(validator(f"{form}Request").is_valid(with_integers(body)) for form in forms)


def with_integers(body: Any) -> Any:
    """Returns the same JSON with 1 for 1.0: JSON Schema has one type of number, and the validator has Python's two."""
    if isinstance(body, dict):
        return {name: with_integers(value) for name, value in body.items()}
    if isinstance(body, list):
        return [with_integers(value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def is_accepted(body: Any) -> bool:
    try:
        RequestParser(V0).parse(json.dumps(body).encode())
    except RequestError:
        return False
    return True


def test_the_file_has_the_request_schemas_of_the_models_and_the_version_of_the_package() -> None:
    assert updated(FILE) == FILE, "python -m llava_serving.api.openapi swagger3.json"


def test_the_file_has_every_error_status_that_a_client_can_get_for_a_post() -> None:
    statuses = {int(status) for status in FILE["paths"]["/score"]["post"]["responses"]} - {200}
    not_for_a_post, without_a_client = {404, 405}, {499}
    assert statuses == {error.status for error in RequestError.__subclasses__()} - not_for_a_post - without_a_client


def test_the_file_is_valid_openapi_3_0() -> None:
    validate(FILE)


def test_the_server_returns_the_file(demo_server: Server) -> None:
    answer = demo_server.request("GET", "/swagger.json?version=3")
    assert answer.status == 200
    assert answer.json == FILE


@pytest.mark.parametrize("body", BODIES)
def test_an_example_of_every_form_is_accepted_and_matches_the_description(body: dict[str, Any]) -> None:
    assert is_accepted(body)
    assert matches_description(body)


NAMES = st.sampled_from(
    ["input_data", "inputs", "input_string", "images", "parameters", "params", "temperature", "stop", "n", "messages",
     "max_tokens", "max_completion_tokens", "columns", "data", "stream", "role", "content", "temprature", "user"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 101) | st.sampled_from(["a", "user", "image", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)


@st.composite
def changed_bodies(draw: st.DrawFn) -> Any:
    """Draws one of BODIES with a value in it replaced, added or removed."""
    body = json.loads(json.dumps(draw(st.sampled_from(BODIES))))
    target = body
    while isinstance(target, dict | list) and target and draw(st.booleans()):
        values = target.values() if isinstance(target, dict) else target
        nested = [value for value in values if isinstance(value, dict | list)]
        if not nested:
            break
        target = draw(st.sampled_from(nested))
    if isinstance(target, dict):
        name = draw(NAMES | st.sampled_from(sorted(target)) if target else NAMES)
        if draw(st.booleans()):
            target[name] = draw(VALUES)
        else:
            target.pop(name, None)
    elif target:
        target[draw(st.integers(0, len(target) - 1))] = draw(VALUES)
    return body


@given(body=changed_bodies())
def test_any_body_that_is_accepted_matches_the_description(body: Any) -> None:
    if is_accepted(body):
        assert matches_description(body)


@pytest.mark.parametrize(
    "body",
    [
        {"input_data": {"input_string": ["a"]}, "inputs": {"input_string": ["a"]}},
        {"input_data": {"input_string": []}},
        {"input_data": {"input_string": ["a"], "parameters": {"temprature": 1}}},
        {"input_data": {"input_string": ["a"], "parameters": {"top_p": 0}}},
        {"input_data": {"input_string": ["a"], "parameters": {"stop": [""]}}},
        {"input_data": {"columns": ["picture"], "data": [["x"]]}},
        {"messages": [{"role": "robot", "content": "?"}]},
        {"messages": [{"role": "user", "content": "?"}], "presence_penalty": 1},
        {},
    ],
)
def test_a_wrong_body_is_refused_and_does_not_match_the_description(body: Any) -> None:
    assert not is_accepted(body)
    assert not matches_description(body)


def test_answers_and_errors_match_the_description(demo_server: Server) -> None:
    for form, body in (
        ("Prompts", {"input_data": {"input_string": ["a", "b"], "parameters": {"n": 2, "max_new_tokens": 2}}}),
        ("List", {"input_data": ["a"], "params": {"max_new_tokens": 2}}),
        ("Table", {"input_data": {"columns": ["text"], "data": [["a"]]}, "params": {"max_new_tokens": 2}}),
        ("Chat", {"input_data": {"input_string": [{"role": "user", "content": "?"}]}}),
        ("ChatCompletion", {"messages": [{"role": "user", "content": "?"}]}),
    ):
        validator(f"{form}Answer").validate(demo_server.score(body).json)
    validator("Error").validate(demo_server.score({"input_data": 1}).json)
    validator("Error").validate(error_body(BadRequest("code", "message")))
