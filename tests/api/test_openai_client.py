"""OpenAI's own Python client, unchanged, against the real server: chat completions, completions, models and errors."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from server import ROOT, Server, as_base64

SHAPES = "a red circle, a blue cross, a yellow triangle"
MEANING = "the meaning of life is to be kind and to keep learning."
PICTURE = as_base64(Image.open(ROOT / "demo" / "pictures" / "shapes.png"))
QUESTION: list[Any] = [
    {"type": "text", "text": "What is in the image?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}", "detail": "auto"}},
]


@pytest.fixture(scope="module")
def client(demo_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{demo_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_completion_about_a_picture(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="llava", messages=[{"role": "user", "content": QUESTION}])
    assert answer.choices[0].message.content == SHAPES
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "llava"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_completion_equals_the_whole_one(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="llava",
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SHAPES
    assert chunks[-1].usage is not None


def test_the_client_s_own_answer_is_sent_back_as_a_turn(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "developer", "content": "Answer."}, {"role": "user", "content": QUESTION}]
    first = client.chat.completions.create(model="llava", messages=messages)
    messages += [first.choices[0].message, {"role": "user", "content": "What is in the image?"}]
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "What is in the image?"}]
    again = client.chat.completions.create(model="llava", messages=messages, store=False, tools=[])
    assert again.choices[0].message.content


def test_seed_n_and_logprobs(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 7, "n": 2, "max_completion_tokens": 5, "logprobs": True}
    question: list[Any] = [{"role": "user", "content": "the sky"}]
    first, second = (
        client.chat.completions.create(model="m", messages=question, top_logprobs=2, **options) for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert len(texts) == 2
    assert texts == [choice.message.content for choice in second.choices]
    logprobs = first.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


def test_a_legacy_completion_with_echo_n_and_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["the meaning of life is", "the sky"]
    answer = client.completions.create(model="llava", prompt=prompts, echo=True, n=2, max_tokens=30)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices[:2]] == [MEANING, MEANING]
    assert all(choice.text.startswith("the sky") for choice in answer.choices[2:])
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 4


def test_a_streamed_legacy_completion_equals_the_whole_one(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "llava", "prompt": "the meaning of life is", "max_tokens": 30, "logprobs": 1}
    whole = client.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].finish_reason == whole.finish_reason == "stop"
    assert whole.logprobs is not None
    assert whole.logprobs.tokens is not None
    assert whole.logprobs.text_offset is not None
    streamed = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    assert [token for logprobs in streamed for token in logprobs.tokens or []] == whole.logprobs.tokens
    assert [offset for logprobs in streamed for offset in logprobs.text_offset or []] == whole.logprobs.text_offset
    assert all(
        whole.text[offset:].startswith(token)
        for token, offset in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True)
        if token.strip()
    )


def test_the_model_is_listed_and_described(client: openai.OpenAI, demo_server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["llava"]
    assert client.models.retrieve("llava").id == "llava"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.models.retrieve("gpt")
    info = demo_server.request("GET", "/info").json
    assert info == {"model_name": "llava", "model_type": "chat-completion", "model_provider_name": "llava-serving"}


def test_errors_are_openai_s_exceptions_with_type_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}], presence_penalty=1)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "presence_penalty")
    assert refused.value.type == "invalid_request_error"
    long = "word " * 5000
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": long}])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/completions"),
        ("POST", "/v1/models"),
        ("PATCH", "/info"),
    ],
)
def test_405_on_openai_s_paths_is_an_error_object(demo_server: Server, method: str, path: str) -> None:
    answer = demo_server.request(method, path)
    assert answer.status == 405
    assert answer.json["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] == ("POST" if "completions" in path else "GET")


def test_a_preflight_on_openai_s_paths_names_the_method(demo_server: Server) -> None:
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/info", "GET")):
        answer = demo_server.request("OPTIONS", path)
        assert (answer.status, answer.headers["allow"]) == (200, method)


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/llava/", "/info/"])
def test_a_slash_at_the_end_of_a_path_changes_nothing(demo_server: Server, path: str) -> None:
    assert demo_server.request("GET", path).status == demo_server.request("HEAD", path).status == 200


REFUSING = """
import sys
sys.path.insert(0, {root!r})
import score
from azureml_inference_server_http.server import routes
from score import run

def init():
    def refuse(*arguments, **options):
        raise TypeError("no more rules")
    routes.main_blueprint.add_url_rule = refuse
    score.init()
"""


def test_if_the_server_takes_no_rules_the_log_says_so_and_score_answers(tmp_path: Path) -> None:
    entry_script = tmp_path / "refusing.py"
    entry_script.write_text(REFUSING.format(root=str(ROOT)))
    with Server(tmp_path / "log", entry_script=entry_script) as server:
        server.wait_until_healthy()
        assert server.score({"input_data": ["the meaning of life is"]}).json == [MEANING]
        assert server.request("GET", "/v1/models").status == 404
    assert "only /score answers: the server took no other paths (TypeError: no more rules)" in server.log


def test_the_asynchronous_client_streams_too(demo_server: Server) -> None:

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{demo_server.port}/v1", api_key="none") as client:
            messages: list[Any] = [{"role": "user", "content": QUESTION}]
            stream = await client.chat.completions.create(model="llava", messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert asyncio.run(ask()) == SHAPES


def test_a_client_that_closes_its_stream_frees_the_sequence(client: openai.OpenAI, demo_server: Server) -> None:
    stream = client.chat.completions.create(
        model="llava",
        messages=[{"role": "user", "content": "the sky"}],
        stream=True,
        max_tokens=400,
        extra_body={"ignore_eos": True},
        extra_headers={"x-ms-client-request-id": "openai-closes"},
    )
    next(iter(stream))
    stream.close()
    assert demo_server.wait_for_record("openai-closes")["finish_reasons"] == ["cancelled"]
