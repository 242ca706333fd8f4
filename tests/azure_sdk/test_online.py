"""An online endpoint from nothing to nothing through MLClient, LangChain and our client, with Azure's statuses."""

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

from llava_serving.client import Endpoint, EndpointError, ask

ROOT = Path(__file__).resolve().parents[2]
NAME = "llava-13b"
PICTURE = ROOT / "demo" / "pictures" / "shapes.png"
SHAPES = "a red circle, a blue cross, a yellow triangle"
MEANING = "the meaning of life is to be kind and to keep learning."
# Some seconds of work on any machine; two of them are let in at a time.
LONG = {"input_data": {"input_string": ["the"], "parameters": {"max_new_tokens": 480, "ignore_eos": True, "n": 44}}}


@pytest.fixture(scope="module")
def endpoint(client: MLClient, checkout: Path) -> Iterator[str]:
    """The scoring URI of an endpoint with two deployments: blue is deployment.yml, green lets in two requests at a time
    for two seconds each. All traffic is blue's."""
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
    traffic(client, blue=100)
    yield str(client.online_endpoints.get(NAME).scoring_uri)
    if any(found.name == NAME for found in client.online_endpoints.list()):
        client.online_endpoints.begin_delete(NAME).result()


@pytest.fixture(scope="module")
def key(client: MLClient, endpoint: str) -> str:
    return str(client.online_endpoints.get_keys(NAME).primary_key)


def traffic(client: MLClient, **shares: int) -> None:
    found = client.online_endpoints.get(NAME)
    found.traffic = shares
    client.online_endpoints.begin_create_or_update(found).result()


def post(url: str, body: Any, key: str | None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    given |= {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), given), timeout=60
        ) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_sdk_invokes_with_a_picture(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(ask(["What is in the image?"], images=[PICTURE])))
    assert json.loads(client.online_endpoints.invoke(NAME, request_file=str(request))) == [{"0": SHAPES}]
    answer = client.online_endpoints.invoke(NAME, request_file=str(request), deployment_name="green")
    assert json.loads(answer) == [{"0": SHAPES}]


def test_our_client_streams(endpoint: str, key: str) -> None:
    events = list(Endpoint(endpoint, key).stream(ask(["What is in the image?"], images=[PICTURE])))
    assert "".join(event.get("0", "") for event in events) == SHAPES
    assert events[-1]["finish_reason"] == "stop"
    began = time.monotonic()
    times = [time.monotonic() - began for _ in Endpoint(endpoint, key).stream(LONG)]
    assert times[0] < times[-1] / 4  # held back, all would come at the end


def test_our_command_asks(endpoint: str, key: str) -> None:
    command = ROOT / ".venv" / "bin" / "llava-serving"
    done = subprocess.run(
        [command, "score", "--url", endpoint, "--image", PICTURE, "--stream", "What is in the image?"],
        env=os.environ | {"AZUREML_ENDPOINT_KEY": key},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == SHAPES


class Formatter(ContentFormatterBase):
    """The example of LangChain's documentation."""

    def format_request_payload(self, prompt: str, model_kwargs: dict[str, Any], api_type: Any) -> bytes:
        return json.dumps({"inputs": {"input_string": [prompt]}, "parameters": model_kwargs}).encode()

    def format_response_payload(self, output: bytes, api_type: Any) -> Generation:
        return Generation(text=json.loads(output)[0]["0"])


@pytest.mark.parametrize(
    ("formatter", "answer"),
    [
        (Formatter(), MEANING),
        (CustomOpenAIContentFormatter(), '"the meaning of life is"'),  # which puts the prompt in quotation marks
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


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key_nobody_is_answered(endpoint: str, key: str | None) -> None:
    status, headers, _ = post(endpoint, ask(["hello"]), key)
    assert (status, headers["x-ms-error-code"]) == (401, "key_auth_access_denied")


def test_a_new_key_takes_the_old_ones_place(client: MLClient, endpoint: str) -> None:
    old = client.online_endpoints.get_keys(NAME).secondary_key
    client.online_endpoints.begin_regenerate_keys(NAME, key_type="secondary").result()
    new = client.online_endpoints.get_keys(NAME).secondary_key
    assert post(endpoint, ask(["the meaning of life is"]), old)[0] == 401
    assert post(endpoint, ask(["the meaning of life is"]), new)[0] == 200


def test_no_such_deployment(endpoint: str, key: str) -> None:
    assert post(endpoint, ask(["hello"]), key, azureml_model_deployment="red")[0] == 404


def test_what_the_service_refuses_comes_as_424_around_its_status(endpoint: str, key: str) -> None:
    status, headers, body = post(endpoint, {"input_data": {"input_string": 3}}, key)
    assert status == 424
    assert headers["ms-azureml-model-error-statuscode"] == "400"
    assert json.loads(body)["error"]["param"].startswith("input_data.input_string")


def test_past_twice_the_concurrency_comes_429_and_our_client_waits(endpoint: str, key: str) -> None:
    green = Endpoint(endpoint, key, deployment="green", retries=0)
    with ExitStack() as held:
        for _ in range(2):
            stream = green.stream(LONG)
            held.callback(stream.close)  # type: ignore[attr-defined]
            next(stream)
        status, headers, _ = post(endpoint, ask(["hello"]), key, azureml_model_deployment="green")
        assert status == 429
        assert headers["Retry-After"] == "1"
        with pytest.raises(EndpointError, match="429"):
            green.score(ask(["hello"]))
    patient = Endpoint(endpoint, key, deployment="green")
    assert patient.score(ask(["the meaning of life is"])).body == [{"0": MEANING}]


def test_past_the_request_timeout_comes_408(endpoint: str, key: str) -> None:
    assert post(endpoint, LONG, key, azureml_model_deployment="green")[0] == 408


def test_traffic_goes_by_percentage(client: MLClient, endpoint: str, key: str) -> None:
    body = {"input_data": {"input_string": ["the"], "parameters": {"max_new_tokens": 1}}}

    def answered() -> list[str]:
        return [post(endpoint, body, key)[1]["azureml-model-deployment"] for _ in range(60)]

    traffic(client, blue=50, green=50)
    both = answered()
    assert 10 < both.count("green") < 50  # 60 fair coins fall outside once in ten million times
    traffic(client, blue=0, green=100)
    assert set(answered()) == {"green"}
    traffic(client, blue=100, green=0)
    assert set(answered()) == {"blue"}


def test_traffic_that_does_not_add_up_is_refused(client: MLClient, endpoint: str) -> None:
    with pytest.raises(HttpResponseError, match="sum"):
        traffic(client, blue=50, green=20)
    with pytest.raises(HttpResponseError, match="percentages"):
        traffic(client, blue=200, green=-100)
    with pytest.raises(HttpResponseError, match="red"):
        traffic(client, red=100)


def test_logs_tell_what_the_service_reports(client: MLClient, endpoint: str) -> None:
    logs = client.online_deployments.get_logs("blue", NAME, lines=1000)
    assert "self-check passed" in logs
    assert "llava-13b-v0/1/demo" in logs


def test_swagger_is_served(endpoint: str, key: str) -> None:
    request = urllib.request.Request(
        endpoint.replace("/score", "/swagger.json?version=3"), headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["openapi"].startswith("3.0")


def test_a_deployment_that_cannot_start_says_why(client: MLClient, endpoint: str, checkout: Path) -> None:
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


def test_an_update_takes_no_answer_away(client: MLClient, endpoint: str, key: str, checkout: Path) -> None:
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
    assert to_green.score(body).headers["x-llava-completion-tokens"] == "1", "what served before"


def test_headers_are_azure_s_and_bodies_come_in_chunks(endpoint: str, key: str) -> None:
    parts = urllib.parse.urlsplit(endpoint)
    connection = http.client.HTTPSConnection(parts.netloc)
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "X-Request-Id": "mine"}
    for _ in range(2):  # on one connection
        connection.request("POST", "/score", iter([b'{"input_data": ["the ', b'meaning of life is"]}']), given)
        answer = connection.getresponse()
        assert json.loads(answer.read()) == [MEANING]
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


def test_an_endpoint_may_take_microsoft_entra_s_tokens(client: MLClient, endpoint: str, checkout: Path) -> None:
    made = load_online_endpoint(checkout / "endpoint.yml", params_override=[{"name": "tokens"}])
    made.auth_mode = "aad_token"
    uri = client.online_endpoints.begin_create_or_update(made).result().scoring_uri
    assert post(uri, {}, None)[0] == 401
    assert post(uri, {}, "anybody's")[0] == 404, "let in, where no deployment has traffic"
    made.auth_mode = "aml_token"
    with pytest.raises(HttpResponseError, match="aad_token"):
        client.online_endpoints.begin_create_or_update(made).result()
    client.online_endpoints.begin_delete("tokens").result()


def test_a_live_deployment_is_not_deleted(client: MLClient, endpoint: str) -> None:
    with pytest.raises(HttpResponseError, match="traffic"):
        client.online_deployments.begin_delete("blue", NAME).result()


def test_deleted_it_is_gone_with_its_processes(client: MLClient, endpoint: str, key: str) -> None:
    """The last of this file: the endpoint ends here."""
    assert services()
    client.online_endpoints.begin_delete(NAME).result()
    assert not services()
    with pytest.raises(EndpointError, match="Connection refused") as refused:
        Endpoint(endpoint, key, retries=0).score(ask(["hello"]))
    assert refused.value.status is None
    with pytest.raises(ResourceNotFoundError):
        client.online_endpoints.get(NAME)


def services() -> list[str]:
    """The inference servers that run the entry script of one of the stand-in's deployments."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "azureml_inference_server_http" in line and f"/online/{NAME}/" in line]
