"""The life of an online endpoint through MLClient, LangChain and llava_serving.client, with Azure's statuses."""

import base64
import http.client
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from azure.ai.ml import MLClient, load_online_deployment, load_online_endpoint
from azure.ai.ml.entities import OnlineDeployment
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from langchain_community.chat_models.azureml_endpoint import AzureMLChatOnlineEndpoint, CustomOpenAIChatContentFormatter
from langchain_community.llms.azureml_endpoint import (
    AzureMLOnlineEndpoint,
    ContentFormatterBase,
    CustomOpenAIContentFormatter,
)
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation
from langchain_openai import ChatOpenAI

from llava_serving.client import Endpoint, EndpointError, ask

ROOT = Path(__file__).resolve().parents[2]
NAME = "llava-13b"
IMAGE = ROOT / "demo" / "pictures" / "shapes.png"
SHAPES = "a red circle, a blue cross, a yellow triangle"
MEANING = "the meaning of life is to be kind and to keep learning."
# Some seconds of work on any machine. The deployment green takes two requests at a time.
LONG = {"input_data": {"input_string": ["the"], "parameters": {"max_new_tokens": 480, "ignore_eos": True, "n": 44}}}


@pytest.fixture(scope="module")
def endpoint(client: MLClient, checkout: Path) -> Iterator[str]:
    """Returns the scoring URI of an endpoint with two deployments.

    Blue is deployment.yml and has all traffic. Green takes two requests at a time, for two seconds each.
    """
    client.online_endpoints.begin_create_or_update(load_online_endpoint(checkout / "endpoint.yml")).result()
    client.online_deployments.begin_create_or_update(load_online_deployment(checkout / "deployment.yml")).result()
    green = load_online_deployment(
        checkout / "deployment.yml",
        params_override=[
            {"name": "green"},
            {"request_settings": {"max_concurrent_requests_per_instance": 1, "request_timeout_ms": 2000}},
        ],
    )
    client.online_deployments.begin_create_or_update(green).result()
    set_traffic(client, blue=100)
    yield str(client.online_endpoints.get(NAME).scoring_uri)
    if any(listed.name == NAME for listed in client.online_endpoints.list()):
        client.online_endpoints.begin_delete(NAME).result()


@pytest.fixture(scope="module")
def key(client: MLClient, endpoint: str) -> str:
    return str(client.online_endpoints.get_keys(NAME).primary_key)


def set_traffic(client: MLClient, **shares: int) -> None:
    endpoint = client.online_endpoints.get(NAME)
    endpoint.traffic = shares
    client.online_endpoints.begin_create_or_update(endpoint).result()


def post(url: str, body: Any, key: str | None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent |= {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), sent), timeout=60
        ) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_sdk_invoke_with_an_image(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(ask(["What is in the image?"], images=[IMAGE])))
    assert json.loads(client.online_endpoints.invoke(NAME, request_file=str(request))) == [{"0": SHAPES}]
    answer = client.online_endpoints.invoke(NAME, request_file=str(request), deployment_name="green")
    assert json.loads(answer) == [{"0": SHAPES}]


def test_our_client_streams_while_the_service_generates(endpoint: str, key: str) -> None:
    events = list(Endpoint(endpoint, key).stream(ask(["What is in the image?"], images=[IMAGE])))
    assert "".join(event.get("0", "") for event in events) == SHAPES
    assert events[-1]["finish_reason"] == "stop"
    started = time.monotonic()
    times = [time.monotonic() - started for _ in Endpoint(endpoint, key).stream(LONG)]
    assert times[0] < times[-1] / 4  # a gateway that buffers would send all events at the end


def test_our_score_command_streams(endpoint: str, key: str) -> None:
    command = ROOT / ".venv" / "bin" / "llava-serving"
    completed = subprocess.run(
        [command, "score", "--url", endpoint, "--image", IMAGE, "--stream", "What is in the image?"],
        env=os.environ | {"AZUREML_ENDPOINT_KEY": key},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == SHAPES


class Formatter(ContentFormatterBase):
    """The example in LangChain's documentation."""

    def format_request_payload(self, prompt: str, model_kwargs: dict[str, Any], api_type: Any) -> bytes:
        return json.dumps({"inputs": {"input_string": [prompt]}, "parameters": model_kwargs}).encode()

    def format_response_payload(self, output: bytes, api_type: Any) -> Generation:
        return Generation(text=json.loads(output)[0]["0"])


@pytest.mark.parametrize(
    ("formatter", "answer"),
    [
        (Formatter(), MEANING),
        (CustomOpenAIContentFormatter(), '"the meaning of life is"'),  # LangChain puts the prompt in quotation marks
    ],
)
def test_langchain_asks(endpoint: str, key: str, formatter: ContentFormatterBase, answer: str) -> None:
    llm = AzureMLOnlineEndpoint(
        endpoint_url=endpoint,
        endpoint_api_type="dedicated",
        endpoint_api_key=key,
        content_formatter=formatter,
        model_kwargs={"max_new_tokens": 20},
    )
    assert llm.invoke("the meaning of life is").startswith(answer)
    assert len(llm.batch(["the meaning of life is"] * 3)) == 3


def test_langchain_chats(endpoint: str, key: str) -> None:
    chat = AzureMLChatOnlineEndpoint(
        endpoint_url=endpoint,
        endpoint_api_type="dedicated",
        endpoint_api_key=key,
        content_formatter=CustomOpenAIChatContentFormatter(),
    )
    assert chat.invoke([HumanMessage(content="What color is the sky?")]).content


def picture_question() -> list[Any]:
    url = f"data:image/png;base64,{base64.b64encode(IMAGE.read_bytes()).decode()}"
    return [{"type": "text", "text": "What is in the image?"}, {"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize("streaming", [False, True])
def test_openai_s_client_chats_about_a_picture(endpoint: str, key: str, streaming: bool) -> None:
    with openai.OpenAI(base_url=endpoint.replace("/score", "/v1"), api_key=key) as client:
        assert [model.id for model in client.models.list()] == ["llava"]
        messages: list[Any] = [{"role": "user", "content": picture_question()}]
        answer: Any = client.chat.completions.create(model="llava", messages=messages, stream=streaming)
        if streaming:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        else:
            text = answer.choices[0].message.content
    assert text == SHAPES


def test_openai_s_client_raises_its_own_error_for_a_wrong_key(endpoint: str) -> None:
    client = openai.OpenAI(base_url=endpoint.replace("/score", "/v1"), api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_langchain_s_openai_chat_answers_and_streams(endpoint: str, key: str) -> None:
    chat = ChatOpenAI(base_url=endpoint.replace("/score", "/v1"), api_key=key, model="llava", temperature=0)
    message = HumanMessage(content=picture_question())
    assert chat.invoke([message]).content == SHAPES
    assert "".join(str(chunk.content) for chunk in chat.stream([message])) == SHAPES


@pytest.mark.parametrize("key", [None, "wrong"])
def test_missing_or_wrong_key_gets_401(endpoint: str, key: str | None) -> None:
    status, headers, _ = post(endpoint, ask(["hello"]), key)
    assert (status, headers["x-ms-error-code"]) == (401, "key_auth_access_denied")


def test_regenerated_key_replaces_the_old_key(client: MLClient, endpoint: str) -> None:
    old = client.online_endpoints.get_keys(NAME).secondary_key
    client.online_endpoints.begin_regenerate_keys(NAME, key_type="secondary").result()
    new = client.online_endpoints.get_keys(NAME).secondary_key
    assert post(endpoint, ask(["the meaning of life is"]), old)[0] == 401
    assert post(endpoint, ask(["the meaning of life is"]), new)[0] == 200


def test_unknown_deployment_gets_404(endpoint: str, key: str) -> None:
    assert post(endpoint, ask(["hello"]), key, azureml_model_deployment="red")[0] == 404


def test_error_of_the_service_gets_424_with_its_status(endpoint: str, key: str) -> None:
    status, headers, body = post(endpoint, {"input_data": {"input_string": 3}}, key)
    assert status == 424
    assert headers["ms-azureml-model-error-statuscode"] == "400"
    assert json.loads(body)["error"]["param"].startswith("input_data.input_string")


def test_more_than_twice_the_concurrency_gets_429_and_our_client_retries(endpoint: str, key: str) -> None:
    green = Endpoint(endpoint, key, deployment="green", retries=0)
    with ExitStack() as streams:
        for _ in range(2):
            stream = green.stream(LONG)
            streams.callback(stream.close)
            next(stream)
        status, headers, _ = post(endpoint, ask(["hello"]), key, azureml_model_deployment="green")
        assert status == 429
        assert headers["Retry-After"] == "1"
        with pytest.raises(EndpointError, match="429"):
            green.score(ask(["hello"]))
    retrying = Endpoint(endpoint, key, deployment="green")
    assert retrying.score(ask(["the meaning of life is"])).body == [{"0": MEANING}]


def test_request_timeout_gets_408(endpoint: str, key: str) -> None:
    assert post(endpoint, LONG, key, azureml_model_deployment="green")[0] == 408


def test_traffic_follows_the_percentages(client: MLClient, endpoint: str, key: str) -> None:
    body = {"input_data": {"input_string": ["the"], "parameters": {"max_new_tokens": 1}}}

    def deployments() -> list[str]:
        return [post(endpoint, body, key)[1]["azureml-model-deployment"] for _ in range(60)]

    set_traffic(client, blue=50, green=50)
    both = deployments()
    assert 10 < both.count("green") < 50  # 60 fair coin tosses fall outside once in ten million times
    set_traffic(client, blue=0, green=100)
    assert set(deployments()) == {"green"}
    set_traffic(client, blue=100, green=0)
    assert set(deployments()) == {"blue"}


def test_traffic_that_is_negative_or_not_100_or_of_an_unknown_deployment_is_refused(
    client: MLClient, endpoint: str
) -> None:
    with pytest.raises(HttpResponseError, match="sum"):
        set_traffic(client, blue=50, green=20)
    with pytest.raises(HttpResponseError, match="percentages"):
        set_traffic(client, blue=200, green=-100)
    with pytest.raises(HttpResponseError, match="red"):
        set_traffic(client, red=100)


def test_logs_have_the_self_check_and_the_model_folder(client: MLClient, endpoint: str) -> None:
    logs = client.online_deployments.get_logs("blue", NAME, lines=1000)
    assert "self-check passed" in logs
    assert "llava-13b-v0/1/demo" in logs


def test_swagger_is_served(endpoint: str, key: str) -> None:
    request = urllib.request.Request(
        endpoint.replace("/score", "/swagger.json?version=3"), headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["openapi"].startswith("3.0")


def test_deployment_with_an_invalid_setting_fails_with_its_name(
    client: MLClient, endpoint: str, checkout: Path
) -> None:
    broken = load_online_deployment(
        checkout / "deployment.yml",
        params_override=[{"name": "broken"}, {"environment_variables": {"LLAVA_DTYPE": "float17"}}],
    )
    with pytest.raises(HttpResponseError, match="LLAVA_DTYPE"):
        client.online_deployments.begin_create_or_update(broken).result()
    assert client.online_deployments.get("broken", NAME).provisioning_state == "Failed"
    client.online_deployments.begin_delete("broken", NAME).result()


def green(checkout: Path, **variables: str) -> OnlineDeployment:
    deployment = load_online_deployment(checkout / "deployment.yml", params_override=[{"name": "green"}])
    deployment.environment_variables |= variables
    return deployment


def test_old_container_serves_until_an_update_is_ready(
    client: MLClient, endpoint: str, key: str, checkout: Path
) -> None:
    body = ask(["the meaning of life is"])
    to_green = Endpoint(endpoint, key, deployment="green", retries=0)
    update = client.online_deployments.begin_create_or_update(green(checkout, LLAVA_DEFAULT_MAX_NEW_TOKENS="1"))
    with pytest.raises(HttpResponseError, match="is being created or updated"):
        client.online_deployments.begin_create_or_update(green(checkout)).result()
    lengths = []
    while not update.done():
        lengths.append(to_green.score(body).headers["x-llava-completion-tokens"])
    assert lengths[0] == "9"
    assert to_green.score(body).headers["x-llava-completion-tokens"] == "1"
    with pytest.raises(HttpResponseError, match="LLAVA_DTYPE"):
        client.online_deployments.begin_create_or_update(green(checkout, LLAVA_DTYPE="float17")).result()
    assert client.online_deployments.get("green", NAME).provisioning_state == "Failed"
    assert to_green.score(body).headers["x-llava-completion-tokens"] == "1", "the previous container still serves"


def test_x_request_id_is_azure_s_and_chunked_bodies_are_read(endpoint: str, key: str) -> None:
    parts = urllib.parse.urlsplit(endpoint)
    connection = http.client.HTTPSConnection(parts.netloc)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "X-Request-Id": "mine"}
    for _ in range(2):  # on one connection
        connection.request("POST", "/score", iter([b'{"input_data": ["the ', b'meaning of life is"]}']), headers)
        response = connection.getresponse()
        assert json.loads(response.read()) == [MEANING]
        assert re.fullmatch(r"[0-9a-f-]{36}", response.headers["x-request-id"])


def test_endpoint_with_microsoft_entra_tokens_takes_any_token(client: MLClient, endpoint: str, checkout: Path) -> None:
    tokens = load_online_endpoint(checkout / "endpoint.yml", params_override=[{"name": "tokens"}])
    tokens.auth_mode = "aad_token"
    uri = client.online_endpoints.begin_create_or_update(tokens).result().scoring_uri
    assert post(uri, {}, None)[0] == 401
    assert post(uri, {}, "any-token")[0] == 404, "the token is accepted, and no deployment has traffic"
    tokens.auth_mode = "aml_token"
    with pytest.raises(HttpResponseError, match="aad_token"):
        client.online_endpoints.begin_create_or_update(tokens).result()
    client.online_endpoints.begin_delete("tokens").result()


def test_deployment_with_traffic_cannot_be_deleted(client: MLClient, endpoint: str) -> None:
    with pytest.raises(HttpResponseError, match="traffic"):
        client.online_deployments.begin_delete("blue", NAME).result()


def test_deleting_the_endpoint_ends_its_processes(client: MLClient, endpoint: str, key: str) -> None:
    """Must be the last test of this file, because it deletes the endpoint."""
    assert services()
    client.online_endpoints.begin_delete(NAME).result()
    assert not services()
    with pytest.raises(EndpointError, match="Connection refused") as raised:
        Endpoint(endpoint, key, retries=0).score(ask(["hello"]))
    assert raised.value.status is None
    with pytest.raises(ResourceNotFoundError):
        client.online_endpoints.get(NAME)


def services() -> list[str]:
    """Returns the command lines of inference servers that run a deployment of this endpoint."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "azureml_inference_server_http" in line and f"/online/{NAME}/" in line]
