"""The five forms of request, and the error about each thing that can be wrong in them."""

import codecs
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.api.parameters import Parameters
from llava_serving.api.request import ScoreRequest
from llava_serving.api.request_parser import RequestParser
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
        (b"\xff\xfe{}", None, "not valid JSON"),
        (b'{"input_data": ["\\ud800"]}', None, "not valid JSON"),
        (b'{"input_data": {"input_string": "a", "parameters": {"temperature": NaN}}}', None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        ([], None, "JSON object"),
        ({}, None, "neither input_data nor inputs nor messages"),
        ({"input_data": {"input_string": "a"}, "inputs": {}}, "inputs", "next to input_data"),
        ({"input_data": {"input_string": "a"}, "temperature": 1}, "temperature", "next to input_data"),
        ({"input_data": "a"}, "input_data", "an object or a list"),
        ({"input_data": {}}, "input_data.input_string", "required"),
        ({"inputs": {}}, "inputs.input_string", "required"),
        ({"input_data": {"input_string": []}}, "input_data.input_string", "at least 1"),
        ({"input_data": {"input_string": ["a", 3]}}, "input_data.input_string[1]", "string"),
        ({"input_data": {"input_string": ["a"], "image": []}}, "input_data.image", "input_string, images"),
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
        (with_parameters(max_new_token=1), PATH + "max_new_token", "max_new_tokens"),
        (with_parameters(max_new_tokens=0), PATH + "max_new_tokens", "greater than or equal to 1"),
        (with_parameters(max_tokens="9"), PATH + "max_tokens", "integer"),
        (with_parameters(max_tokens=9.5), PATH + "max_tokens", "integer"),
        (with_parameters(max_tokens=True), PATH + "max_tokens", "integer"),
        (with_parameters(max_tokens=9, max_gen_len=9), PATH + "max_gen_len", "'max_new_tokens', which is already set"),
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
        (with_parameters(template="v2"), PATH + "template", "'v0', 'v1' or 'none'"),
        (with_parameters(logprobs=True), PATH + "logprobs", "only OpenAI chat completions"),
        (with_parameters(top_logprobs=2), PATH + "top_logprobs", "only OpenAI chat completions"),
        ({"input_data": {"columns": ["image"], "data": [["A"]]}}, "input_data.data[0]", "exactly one of the columns"),
        ({"input_data": {"columns": ["text"], "data": [["a", "b"]]}}, "input_data.data[0]", "2 cells for 1 columns"),
        ({"input_data": {"columns": ["question"], "data": [["a"]]}}, "input_data.columns[0]", "direct_question"),
        ({"input_data": {"columns": ["text", "text"], "data": [["a", "b"]]}}, "input_data.columns", "twice"),
        ({"input_data": {"columns": ["text"]}}, "input_data.data", "required"),
        ({"input_data": {"columns": ["text"], "data": [["a"]], "index": [0, 1]}}, "input_data.index", "2 entries"),
        ({"input_data": {"columns": ["text"], "data": [[1]]}}, "input_data.data[0][0]", "string"),
        (chat_completion("a", best_of=1), "best_of", "messages, "),
        (chat_completion("a", return_full_text=True), "return_full_text", "cannot return the prompt"),
        (chat_completion("a", stream_options={"include_usage": True}), "stream_options", "needs stream"),
        (chat_completion("a", top_logprobs=2), "top_logprobs", "needs logprobs"),
        (chat_completion("a", logprobs=True, top_logprobs=21), "top_logprobs", "less than or equal to 20"),
        (chat_completion("a", logprobs=5), "logprobs", "boolean"),
        (chat_completion("a", presence_penalty=0.5), "presence_penalty", "less than or equal to 0"),
        (chat_completion("a", response_format={"type": "json_object"}), "response_format.type", "'text'"),
        (chat_completion("a", template="none"), "template", "always"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'system', 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        (chat_completion([]), "messages[0].content", "at least 1"),
        (chat_completion([{"type": "video"}]), "messages[0].content[0].type", "'text' or 'image_url'"),
        ({"messages": [{"role": "user", "content": "a", "strange": 1}]}, "messages[0].strange", "extra inputs"),
        (chat_completion([{"type": "text", "text": "a", "stray": 1}]), "messages[0].content[0].stray", "extra inputs"),
        (chat_completion([{"type": "text"}]), "messages[0].content[0]", "type text must have text"),
        (chat_completion([{"type": "image_url", "image_url": "A"}]), "messages[0].content[0].image_url", "dictionary"),
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


def test_the_defaults_that_openai_s_clients_send_have_no_effect() -> None:
    defaults = {"user": "me", "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}}
    assert parse(**chat_completion("a", **defaults)) == parse(**chat_completion("a"))


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
