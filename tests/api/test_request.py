"""The five forms of request, and the error about each thing that can be wrong in them."""

import codecs
import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as LegacyCompletionCreateParamsBase

from llava_serving.api.openai_fields import IGNORED, NEUTRAL_VALUES
from llava_serving.api.parameters import OPENAI_ALIASES, Parameters
from llava_serving.api.request_parser import RequestParser
from llava_serving.api.schema import ChatCompletionBody, CompletionBody
from llava_serving.api.score_request import ScoreRequest
from llava_serving.errors import BadRequest
from llava_serving.inputs.prompt import Prompt
from llava_serving.inputs.templates import V0, V1

PARSER = RequestParser(V0)


def parse(**body: Any) -> ScoreRequest:
    return PARSER.parse(json.dumps(body).encode())


def parse_data(**input_data: Any) -> ScoreRequest:
    return parse(input_data=input_data)


def parse_error(body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as error:
        PARSER.parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return error.value


def image_data(prompt: Prompt) -> list[str]:
    return [image.data for image in prompt.images]


CARD = {
    "input_string": ["the meaning of life is"],
    "parameters": {"temperature": 0.5, "top_p": 0.5, "max_new_tokens": 10, "do_sample": True},
}


def test_the_example_of_the_model_card() -> None:
    request = parse_data(**CARD)
    assert (request.form, request.echo) == ("prompts", (True,))
    assert request.prompts[0].segments == ("the meaning of life is",)
    assert request.parameters == Parameters(temperature=0.5, top_p=0.5, max_new_tokens=10, do_sample=True)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": CARD},
        {"input_data": {"input_string": CARD["input_string"]}, "parameters": CARD["parameters"]},
        {"input_data": {"input_string": "the meaning of life is"}, "params": CARD["parameters"]},
        {"input_data": {"input_string": CARD["input_string"], "params": CARD["parameters"]}},
        {"input_data": CARD | {"images": None}},
        {"input_data": CARD | {"images": [None]}},
        {"input_data": CARD | {"images": [[]]}},
    ],
)
def test_other_spellings_of_the_same_request_are_equal(body: dict[str, Any]) -> None:
    assert parse(**body) == parse_data(**CARD)


def test_an_image_puts_a_text_into_the_template_unless_a_placeholder_places_it() -> None:
    request = parse_data(input_string=["What?", "see <image>!", "plain"], images=["A", ["B"], None])
    assert [prompt.in_template for prompt in request.prompts] == [True, False, False]
    assert [image_data(prompt) for prompt in request.prompts] == [["A"], ["B"], []]
    assert request.echo == (False, True, True)


def test_the_template_parameter_puts_texts_into_the_template_or_leaves_them_raw() -> None:
    in_template = parse_data(input_string=["hello", "a <image> b"], images=[None, "A"], parameters={"template": "v0"})
    assert [prompt.in_template for prompt in in_template.prompts] == [True, True]
    raw = parse_data(input_string=["a <image> b"], images=["A"], parameters={"template": "none"})
    assert not raw.prompts[0].in_template
    assert parse_error(
        {"input_data": {"input_string": ["no placeholder"], "images": ["A"], "parameters": {"template": "none"}}}
    ).code == "image_count_mismatch"  # fmt: skip


@pytest.mark.parametrize("full", [True, False])
def test_return_full_text_applies_to_every_prompt(full: bool) -> None:
    request = parse_data(input_string=["a", "b"], images=["A", None], parameters={"return_full_text": full})
    assert request.echo == (full, full)


def test_a_byte_order_mark_before_the_json_is_skipped() -> None:
    body = json.dumps({"input_data": ["a"]}).encode()
    assert PARSER.parse(codecs.BOM_UTF8 + body) == PARSER.parse(body)


def test_a_plain_list() -> None:
    request = parse(input_data=["a", "b"], params={"max_gen_len": 4})
    assert (request.form, len(request.prompts), request.parameters.max_new_tokens) == ("list", 2, 4)


def test_a_table() -> None:
    columns = ["image", "prompt", "direct_question", "text"]
    rows = [["A", None, "What?", None], ["B", "x <image> y", "", None], [None, None, None, "Hello?"]]
    request = parse(input_data={"columns": columns, "index": [0, 1, 2], "data": rows})
    assert request.form == "table"
    assert [prompt.in_template for prompt in request.prompts] == [True, True, True]
    assert request.prompts[1].text == "x <image> y"  # unchanged
    assert [image_data(prompt) for prompt in request.prompts] == [["A"], ["B"], []]
    assert request.echo == (False, False, False)
    assert parse(input_data={"columns": columns, "data": rows}) == request  # the index is optional
    empty = parse(input_data={"columns": ["image", "text"], "data": [["", "What?"]]})
    assert image_data(empty.prompts[0]) == [""]  # an empty image is refused when it is read


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "A"}}]},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Sure?"},
]


def test_a_chat() -> None:
    request = parse_data(input_string=MESSAGES, parameters={"n": 1})
    assert request.form == "chat"
    assert image_data(request.prompts[0]) == ["A"]
    assert request.prompts[0].text.endswith("Human: What?\n<image>###Assistant: A dog.###Human: Sure?###Assistant:")


def test_an_openai_chat_completion() -> None:
    request = parse(
        messages=MESSAGES, model="llava", max_completion_tokens=9, min_tokens=2, n=2, stop="x", seed=1, temperature=0,
        logprobs=True, top_logprobs=3, ignore_eos=True, stream=False, top_p=None,
    )  # fmt: skip
    assert (request.form, request.model, request.logprobs) == ("chat_completion", "llava", 3)
    assert request.prompts[0].text == parse_data(input_string=MESSAGES).prompts[0].text
    expected = Parameters(max_new_tokens=9, min_new_tokens=2, n=2, stop=["x"], seed=1, temperature=0.0, ignore_eos=True)
    assert request.parameters == expected


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": None, "logprobs": None}, 0.0),
        ({"do_sample": True, "temperature": 1e-300}, 0.0),
    ],
)
def test_do_sample_and_temperature_decide_between_greedy_and_sampling(
    parameters: dict[str, Any], temperature: float
) -> None:
    request = parse_data(input_string="a", parameters=parameters)
    assert request.parameters.sampling_params(1, None, None).temperature == temperature


def test_ignore_eos_also_ignores_the_separator_of_the_template() -> None:
    parameters = parse_data(input_string="a", parameters={"stop": "x"}).parameters
    assert parameters.sampling_params(1, "###", None).stop == ("x", "###")
    parameters = parse_data(input_string="a", parameters={"stop": "x", "ignore_eos": True}).parameters
    assert parameters.sampling_params(1, "###", None).stop == ("x",)


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"input_data": {"input_string": ["a"], "parameters": parameters}}


def chat_completion(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


PATH = "input_data.parameters."


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "not valid JSON"),
        (b'{"input_data": ', None, "not valid JSON"),
        (b"\xff\xfe{}", None, "UTF-16"),
        (json.dumps({"input_data": ["a"]}).encode("utf-16-le"), None, "UTF-16"),
        (b"\xff{}", None, "not valid JSON"),
        (b'{"input_data": ["\\ud800"]}', None, "not valid JSON"),
        (b'{"input_data": {"input_string": "a", "parameters": {"temperature": NaN}}}', None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        ([], None, "JSON object"),
        ({}, None, "neither input_data nor inputs nor messages"),
        ({"input_data": {"input_string": "a"}, "inputs": {}}, "inputs", "next to input_data"),
        ({"input_data": {"input_string": "a"}, "temperature": 1}, "temperature", "next to input_data"),
        ({"input_data": 3}, "input_data", "an object or a list"),
        ({"input_data": {}}, "input_data.input_string", "required"),
        ({"inputs": {}}, "inputs.input_string", "required"),
        ({"input_data": {"input_string": []}}, "input_data.input_string", "at least 1"),
        ({"input_data": {"input_string": ["a", 3]}}, "input_data.input_string[1]", "string"),
        ({"input_data": {"input_string": ["a"], "image": []}}, "input_data.image", "did you mean 'images'?"),
        ({"input_data": {"input_string": ["a", "b"], "images": ["A"]}}, "input_data.images", "1 entries for 2"),
        ({"input_data": {"input_string": ["a"], "images": [3]}}, "input_data.images[0]", "string"),
        ({"input_data": {"input_string": ["<image>"]}}, "input_data.input_string[0]", "1 <image> and 0 images"),
        ({"input_data": []}, "input_data", "at least 1"),
        ({"inputs": ["a", 1]}, "inputs[1]", "string"),
        ({"input_data": ["a"], "params": {"n": 2}}, "params.n", "one answer per string"),
        ({"input_data": ["a"], "params": {"num_return_sequences": 2}}, "params.num_return_sequences", "one answer"),
        ({"input_data": ["a"], "params": 3}, "params", "object"),
        (with_parameters() | {"params": {"n": 1}}, "params", "twice"),
        (with_parameters(max_new_token=1), PATH + "max_new_token", "accepted are"),
        (with_parameters(max_new_token=1), PATH + "max_new_token", "did you mean 'max_new_tokens'?"),
        (with_parameters(max_new_tokens=0), PATH + "max_new_tokens", "greater than or equal to 1"),
        (with_parameters(max_tokens="9"), PATH + "max_tokens", "integer"),
        (with_parameters(max_tokens=9.5), PATH + "max_tokens", "integer"),
        (with_parameters(max_tokens=True), PATH + "max_tokens", "integer"),
        (
            with_parameters(max_tokens=9, max_gen_len=9),
            PATH + "max_gen_len",
            "the same as 'max_tokens', which is also set",
        ),
        (with_parameters(temperature=-0.1), PATH + "temperature", "greater than or equal to 0"),
        (with_parameters(temperature="hot"), PATH + "temperature", "number"),
        (with_parameters(top_p=0), PATH + "top_p", "greater than 0"),
        (with_parameters(top_p=1.5), PATH + "top_p", "less than or equal to 1"),
        (with_parameters(top_k=-2), PATH + "top_k", "greater than or equal to -1"),
        (with_parameters(repetition_penalty=0), PATH + "repetition_penalty", "greater than or equal to 0.01"),
        (with_parameters(max_tokens=2**31), PATH + "max_tokens", "less than or equal to"),
        (with_parameters(n=2**31), PATH + "n", "less than or equal to"),
        (with_parameters(stop=[""]), PATH + "stop[0]", "at least 1"),
        (with_parameters(stop=["x"] * 17), PATH + "stop", "at most 16"),
        (with_parameters(stop=3), PATH + "stop", "list"),
        (with_parameters(seed=2**63), PATH + "seed", "less than"),
        (with_parameters(n=0), PATH + "n", "greater than or equal to 1"),
        (with_parameters(do_sample="yes"), PATH + "do_sample", "boolean"),
        (with_parameters(template="v1"), PATH + "template", "v0 and none"),
        (with_parameters(template="v2"), PATH + "template", "'v0', 'v1', 'simple', 'chat' or 'none'"),
        (with_parameters(logprobs=True), PATH + "logprobs", "only OpenAI's forms"),
        (with_parameters(top_logprobs=2), PATH + "top_logprobs", "only OpenAI's forms"),
        ({"input_data": {"columns": ["image"], "data": [["A"]]}}, "input_data.data[0]", "exactly one of the columns"),
        ({"input_data": {"columns": ["text"], "data": [["a", "b"]]}}, "input_data.data[0]", "2 cells for 1 columns"),
        ({"input_data": {"columns": ["question"], "data": [["a"]]}}, "input_data.columns[0]", "direct_question"),
        ({"input_data": {"columns": ["text", "text"], "data": [["a", "b"]]}}, "input_data.columns", "twice"),
        ({"input_data": {"columns": ["text"]}}, "input_data.data", "required"),
        ({"input_data": {"columns": ["text"], "data": [["a"]], "index": [0, 1]}}, "input_data.index", "2 entries"),
        ({"input_data": {"columns": ["text"], "data": [[1]]}}, "input_data.data[0][0]", "string"),
        (chat_completion("a", best_of=1), "best_of", "messages, "),
        (chat_completion("a", return_full_text=True), "return_full_text", "do not return the full text"),
        (chat_completion("a", stream_options={"include_usage": True}), "stream_options", "needs stream"),
        (chat_completion("a", top_logprobs=2), "top_logprobs", "needs logprobs"),
        (chat_completion("a", logprobs=True, top_logprobs=21), "top_logprobs", "less than or equal to 20"),
        (chat_completion("a", logprobs=5), "logprobs", "boolean"),
        (chat_completion("a", presence_penalty=0.5), "presence_penalty", "does not support presence_penalty"),
        (
            chat_completion("a", response_format={"type": "json_object"}),
            "response_format",
            "does not support response_format",
        ),
        (chat_completion("a", template="none"), "template", "always"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "contnet": "a"}]}, "messages[0].contnet", "did you mean 'content'?"),
        (chat_completion([{"type": "text", "txt": "a"}]), "messages[0].content[0].txt", "did you mean 'text'?"),
        (
            chat_completion([{"type": "image_url", "image_url": {"urls": "A"}}]),
            "messages[0].content[0].image_url.urls",
            "did you mean 'url'?",
        ),
        ({"messages": [None]}, "messages[0]", "should be a JSON object"),
        (chat_completion("a", maxTokens=3), "maxTokens", "did you mean 'max_tokens'?"),
        (chat_completion("a", tols=[]), "tols", "did you mean 'tools'?"),
        (chat_completion("a", max_tokens=5, max_completion_tokens=6), "max_completion_tokens", "same as 'max_tokens'"),
        ({"input_data": {"input_strng": ["a"]}}, "input_data.input_strng", "did you mean 'input_string'?"),
        ({"input_data": [{"role": "user", "content": "a"}]}, "input_data", "a list of messages belongs in {"),
        (b"\x1f\x8b\x08\x00abc", None, "compressed with gzip"),
        (b"  ", None, "the body is empty"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'developer', 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must have content"),
        (chat_completion([]), "messages[0].content", "must have content"),
        (chat_completion([{"type": "video"}]), "messages[0].content[0].type", "'text' or 'image_url'"),
        (
            {"messages": [{"role": "user", "content": "a", "strange": 1}]},
            "messages[0].strange",
            "'strange' is not accepted here; accepted are content, name, role",
        ),
        (
            chat_completion([{"type": "text", "text": "a", "stray": 1}]),
            "messages[0].content[0].stray",
            "'stray' is not accepted here",
        ),
        (chat_completion([{"type": "text"}]), "messages[0].content[0]", "type text must have text"),
        (
            chat_completion([{"type": "image_url", "image_url": 3}]),
            "messages[0].content[0].image_url",
            "should be a JSON object",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0]", "must be the user's"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
            "messages[1]",
            "must come first",
        ),
        (
            {"messages": [{"role": "system", "content": MESSAGES[1]["content"]}, *MESSAGES[1:]]},
            "messages[0].content[1].image_url.url",
            "only user messages may have images",
        ),
    ],
)
def test_an_error_about_a_request_has_status_400_the_path_and_the_cause(
    body: Any, param: str | None, message: str
) -> None:
    error = parse_error(body)
    assert error.status == 400
    assert error.param == param
    assert message in error.message


NEUTRAL = {
    "user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
    "reasoning_effort": "low", "verbosity": "low", "presence_penalty": 0, "frequency_penalty": 0.0,
    "response_format": {"type": "text"}, "modalities": ["text"], "tools": [], "functions": [], "tool_choice": "none",
    "function_call": "auto", "logit_bias": {}, "prediction": None, "audio": None, "seed": None, "stop": None,
    "prompt_cache_options": {"mode": "explicit"}, "moderation": None, "top_logprobs": 0, "stream_options": {},
    "min_p": None, "max_completion_tokens": None,
}  # fmt: skip


def test_every_field_of_openai_s_client_is_known() -> None:
    """A field that the service does not implement is refused with that reason, not as an unknown name."""
    known = {*Parameters.model_fields, *OPENAI_ALIASES, *NEUTRAL_VALUES, *IGNORED}
    chat = {*CompletionCreateParamsBase.__annotations__} - {*ChatCompletionBody.model_fields}
    legacy = {*LegacyCompletionCreateParamsBase.__annotations__} - {*CompletionBody.model_fields}
    assert chat <= known
    assert legacy <= known


def test_tools_are_accepted_if_they_are_not_to_be_used() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parse(**chat_completion("a", tools=tools, tool_choice="none")) == parse(**chat_completion("a"))


def test_a_null_alias_does_not_set_the_parameter() -> None:
    for names in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
        values = dict(zip(names, (5, None), strict=True))
        assert parse(**chat_completion("a", **values)).parameters == Parameters(max_new_tokens=5)
    assert parse(input_data=["a"], params={"max_new_tokens": 2, "max_tokens": None}).parameters.max_new_tokens == 2


def test_null_is_absent_at_every_level() -> None:
    part = {"type": "text", "text": "hi", "audio": None, "image_url": None}
    message = {"role": "user", "content": [part], "parsed": None}
    options = {"stream": True, "stream_options": {"include_usage": None}, "unknown": None}
    assert parse(messages=[message], **options) == parse(
        **chat_completion([{"type": "text", "text": "hi"}]), stream=True
    )
    chat = {"input_string": [{"role": "user", "content": "a"}], "images": None}
    assert parse(input_data=chat, strange=None) == parse(input_data={"input_string": chat["input_string"]})


@pytest.mark.parametrize(
    ("path", "body", "right_path"),
    [
        ("/v1/completions", {"messages": [{"role": "user", "content": "a"}]}, "/v1/chat/completions"),
        ("/v1/completions", {"input_data": ["a"]}, "/score"),
        ("/v1/chat/completions", {"prompt": "a"}, "/v1/completions"),
        ("/v1/chat/completions", {"inputs": "a"}, "/score"),
    ],
)
def test_a_body_on_a_wrong_path_is_told_the_right_one(path: str, body: dict[str, Any], right_path: str) -> None:
    with pytest.raises(BadRequest, match=f"to {right_path}$"):
        PARSER.parse(json.dumps(body).encode(), path=path)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_of_an_openai_field_has_no_effect(name: str) -> None:
    assert parse(**chat_completion("a", **{name: NEUTRAL[name]})) == parse(**chat_completion("a"))
    assert parse(**chat_completion("a", **{name: None})) == parse(**chat_completion("a"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.1),
        ("frequency_penalty", False),
        ("response_format", {"type": "json_schema"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content", "content": "a"}),
        ("web_search_options", {}),
    ],
)
def test_an_openai_field_that_asks_for_something_else_is_refused_by_name(name: str, value: Any) -> None:
    error = parse_error(chat_completion("a", **{name: value}))
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert name in error.message


def test_the_assistant_message_of_openai_s_client_is_accepted_as_it_was_returned() -> None:
    sent_back = {
        "role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": None, "name": None,
    }  # fmt: skip
    first, last = {"role": "user", "content": "a", "name": "me"}, {"role": "user", "content": "c"}
    expected = parse(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, last])
    assert parse(messages=[first, sent_back, last]) == expected
    refused = parse_error({"messages": [first, sent_back | {"tool_calls": [{"id": "1"}]}, last]})
    assert (refused.code, refused.param) == ("unsupported_parameter", "messages[1].tool_calls")


@pytest.mark.parametrize("content", [None, [], ""])
def test_an_assistant_message_may_be_empty(content: Any) -> None:
    first, last = {"role": "user", "content": "a"}, {"role": "user", "content": "c"}
    request = parse(messages=[first, {"role": "assistant", "content": content}, last])
    assert request == parse(messages=[first, {"role": "assistant", "content": ""}, last])


def test_leading_system_and_developer_messages_are_joined_by_a_blank_line() -> None:
    user = {"role": "user", "content": "a"}
    parts = [{"type": "text", "text": "two"}]
    system = [{"role": "developer", "content": "one"}, {"role": "system", "content": parts}]
    assert parse(messages=[*system, user]) == parse(messages=[{"role": "system", "content": "one\n\ntwo"}, user])
    assert parse_error({"messages": [user, system[0], user]}).param == "messages[1]"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "A"},
        {"type": "image_url", "image_url": {"url": "A", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "A", "detail": None}, "text": None},
        {"type": "image_url", "image_url": {"url": "A"}, "cache_control": {"type": "ephemeral"}},
    ],
)
def test_image_parts_of_other_clients_are_the_same_request(part: dict[str, Any]) -> None:
    text = {"type": "text", "text": "?", "image_url": None}
    expected = chat_completion([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "A"}}])
    assert parse(**chat_completion([text, part])) == parse(**expected)


def test_an_integral_float_is_an_integer() -> None:
    request = parse(**with_parameters(max_new_tokens=9.0, n=2.0, seed=-3.0, top_k=0.0))
    assert request.parameters == Parameters(max_new_tokens=9, n=2, seed=-3, top_k=0)
    assert isinstance(request.parameters.n, int)
    assert parse(**chat_completion("a", logprobs=True, top_logprobs=2.0)).logprobs == 2


def test_a_string_as_data_is_a_plain_list_of_one() -> None:
    assert parse(inputs="a") == parse(inputs=["a"])
    assert parse(inputs="a").form == "list"


def test_a_table_with_the_column_input_string_holds_raw_prompts() -> None:
    table = parse(input_data={"columns": ["input_string"], "index": [0, 1], "data": [["a"], ["b"]]}, params={"n": 2})
    card = parse(input_data={"input_string": ["a", "b"]}, params={"n": 2})
    assert (table.form, table.echo) == ("prompts", (True, True))
    assert [prompt.segments for prompt in table.prompts] == [prompt.segments for prompt in card.prompts]
    assert table.prompts[1].path == "input_data.data[1][0]"


@pytest.mark.parametrize(
    ("table", "param"),
    [
        ({"columns": ["input_string", "image"], "data": [["a", "A"]]}, "input_data.columns"),
        ({"columns": ["input_string"], "data": [["a"], [None]]}, "input_data.data[1]"),
        ({"columns": ["input_string"], "data": [["a", "b"]]}, "input_data.data[0]"),
        ({"columns": ["input_string"], "data": [["a"]], "index": [0, 1]}, "input_data.index"),
    ],
)
def test_a_wrong_table_of_raw_prompts_is_refused(table: dict[str, Any], param: str) -> None:
    assert parse_error({"input_data": table}).param == param


def completion(**fields: Any) -> Any:
    return PARSER.parse(json.dumps(fields).encode(), path="/v1/completions")


def test_a_legacy_completion_holds_raw_prompts() -> None:
    request = completion(model="m", prompt=["a", "b"], max_tokens=3, n=2, best_of=2, echo=True, suffix=None)
    assert (request.form, request.model, request.echo) == ("completion", "m", (True, True))
    assert [prompt.segments for prompt in request.prompts] == [("a",), ("b",)]
    assert (request.parameters.max_new_tokens, request.num_sequences) == (3, 4)
    assert completion(prompt="a") == completion(prompt=["a"])
    assert completion(prompt="a", logprobs=2).logprobs == 2
    assert completion(prompt="a", template="v0").prompts[0].in_template


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt[0]"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "return_full_text": True}, "return_full_text"),
    ],
)
def test_a_legacy_completion_that_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        completion(**fields)
    assert refused.value.param == param


def test_the_path_of_chat_completions_takes_no_other_form() -> None:
    for path in ("/v1/chat/completions", "/chat/completions"):
        with pytest.raises(BadRequest):
            PARSER.parse(b'{"input_data": ["a"]}', path=path)
        assert PARSER.parse(json.dumps(chat_completion("a")).encode(), path=path).form == "chat_completion"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["input_data", "inputs", "input_string", "images", "parameters", "params", "columns", "data", "messages",
             "role", "content", "type", "text", "image_url", "url", "n", "stop", "template", "stream", "index"]
        ) | st.text(max_size=3),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(body=JSON)
def test_any_json_is_parsed_or_refused(body: Any) -> None:
    with contextlib.suppress(BadRequest):
        assert PARSER.parse(json.dumps(body).encode()).prompts


@given(body=st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert PARSER.parse(body).prompts


def test_a_template_other_than_the_model_s_is_refused_and_the_model_s_is_applied() -> None:
    body = json.dumps({"input_data": {"input_string": "a", "parameters": {"template": "v0"}}}).encode()
    with pytest.raises(BadRequest, match="this model's template is v1; accepted are v1 and none") as error:
        RequestParser(V1).parse(body)
    assert error.value.param == "input_data.parameters.template"
    (prompt,) = RequestParser(V1).parse(body.replace(b"v0", b"v1")).prompts
    assert prompt.text.endswith(" USER: a ASSISTANT:")


MANY = 50_000


@pytest.mark.parametrize(
    "body",
    [
        {"input_data": [1] * MANY},
        {"input_data": {"input_string": [1] * MANY}},
        {"input_data": {"input_string": ["a"], "images": [[1] * MANY]}},
        {"input_data": {"input_string": ["a"]} | {f"name{i}": 1 for i in range(MANY)}},
        {"input_data": {"columns": [1] * MANY, "data": [["a"]]}},
        {"input_data": {"columns": ["text"], "data": [[1] * MANY] * 2}},
        {"messages": [1] * MANY},
        {"messages": [{"role": "user", "content": [1] * MANY}]},
        {"messages": [{"role": "user", "content": "a"}], **{f"name{i}": 1 for i in range(MANY)}},
        {"input_data": {"input_string": ["a"], "parameters": {"stop": [1] * MANY}}},
    ],
)
def test_refusing_fifty_thousand_wrong_items_takes_less_than_16_mib(body: dict[str, Any]) -> None:
    encoded = json.dumps(body).encode()
    tracemalloc.start()
    with pytest.raises(BadRequest):
        RequestParser(V0).parse(encoded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20 + 2 * len(encoded)


@pytest.mark.parametrize(
    "body", [b'{"messages": [], "messages": [{"role": "user", "content": "a"}]}', b'{"input_data": {"a": 1, "a": 1}}']
)
def test_an_object_that_has_a_key_twice_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        RequestParser(V0).parse(body)
    assert refused.value.code == "invalid_json"
    assert "twice" in refused.value.message
