"""`llava-serving score` and llava_serving.client, against the real server and against a scripted one."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_server import OK, StartServer
from server import Server

from llava_serving.client import Endpoint, EndpointError, ask
from llava_serving.tools import cli
from llava_serving.weights.model_folder import DEMO

SHAPES = DEMO / "pictures" / "shapes.png"
DIGIT = DEMO / "pictures" / "digit.png"
ABOUT_SHAPES = "a red circle, a blue cross, a yellow triangle"
Score = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(demo_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Score:
    """Runs the command in this process; returns its exit status, standard output and standard error."""

    def run(*arguments: str, url: str = f"http://127.0.0.1:{demo_server.port}/score") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "score", "--url", url, *arguments])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_score_command_prints_the_answer_about_an_image(score: Score) -> None:
    assert score("--image", str(SHAPES), "What is in the image?") == (0, ABOUT_SHAPES + "\n", "")


@pytest.mark.parametrize("output", ["text", "table"])
def test_several_prompts_have_an_image_each(score: Score, output: str) -> None:
    images = ("--image", str(SHAPES), "--image", str(DIGIT))
    status, out, _ = score(*images, "--output", output, "What is in the image?", "What is in the image?")
    assert status == 0
    first, second = out.splitlines()
    assert first == (ABOUT_SHAPES if output == "text" else f"  0  0  {ABOUT_SHAPES}")
    assert second != first


def test_stream_prints_the_same_text_as_a_complete_answer(score: Score) -> None:
    assert score("--stream", "--image", str(SHAPES), "What is in the image?") == (0, ABOUT_SHAPES + "\n", "")
    both = score("--stream", "--image", str(SHAPES), "What is in the image?", "What is in the image?")
    assert both == (0, f"{ABOUT_SHAPES}\n{ABOUT_SHAPES}\n", "")
    _, out, _ = score("--stream", "--output", "json", "--image", str(SHAPES), "What is in the image?")
    events = [json.loads(line) for line in out.splitlines()]
    assert "".join(event.get("0", "") for event in events) == ABOUT_SHAPES
    assert events[-1]["finish_reason"] == "stop"


def test_stream_prints_many_sequences_in_order_and_chat_completions(score: Score, tmp_path: Path) -> None:
    seeded = ("--parameter", "n=12", "--parameter", "temperature=2", "--parameter", "seed=1", "the sky is")
    assert score("--stream", *seeded) == score(*seeded)
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "temperature": 2, "seed": 1, "max_tokens": 5}
    (tmp_path / "request.json").write_text(json.dumps(body))
    complete = score("--file", str(tmp_path / "request.json"))
    assert complete[1].strip()
    assert score("--stream", "--file", str(tmp_path / "request.json")) == complete


def test_legacy_completions_are_printed_complete_and_streamed(
    score: Score, demo_server: Server, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/v1/completions"
    body = {"prompt": ["the sky is", "Hi"], "n": 2, "temperature": 2, "seed": 1, "max_tokens": 5}
    (tmp_path / "request.json").write_text(json.dumps(body))
    request = ("--file", str(tmp_path / "request.json"))
    status, out, _ = score(*request, "--output", "json", url=url)
    texts = [choice["text"] for choice in json.loads(out)["choices"]]
    assert status == 0
    assert len(texts) == 4
    expected = (0, "".join(f"{text}\n" for text in texts), "")
    assert score(*request, url=url) == expected
    assert score(*request, "--stream", url=url) == expected


def test_parameters_are_sent_and_json_is_printed(score: Score) -> None:
    status, out, _ = score("--parameter", "max_new_tokens=3", "--parameter", "n=2", "--output", "json", "the sky is")
    assert status == 0
    assert json.loads(out)[0].keys() == {"0", "1"}


def test_body_is_read_from_a_file_and_from_standard_input(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})
    (tmp_path / "request.json").write_text(body, "utf-8-sig")
    from_file = score("--file", str(tmp_path / "request.json"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(body))
    assert score("--file", "-") == from_file
    assert from_file[0] == 0
    assert from_file[1].strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either prompts or a body"),
        (("--file", "x", "a"), "give either prompts or a body"),
        (("--image", "/no/such/file", "a"), "there is no image file /no/such/file"),
        (("--image", "/tmp", "a"), "/tmp is a folder, not an image file"),
        (("--parameter", "n", "a"), "--parameter n is not NAME=VALUE"),
        (("--image", str(SHAPES), "--image", str(SHAPES), "a", "b", "c"), "2 images for 3 prompts"),
        (("--file", str(SHAPES)), f"{SHAPES} is not one JSON value"),
        (("--file", "/dev/null"), "/dev/null is not one JSON value"),
        (("--parameter", 'stop=["', "a"), "begins like JSON but is not JSON"),
        (("--image", "https://example.com/cat.png", "a"), "images are files here"),
        (("--timeout", "0", "a"), "the timeout must be over 0 s"),
        (("--timeout", "inf", "a"), "the timeout must be over 0 s"),
        (("--retries", "-1", "a"), "the number of retries must be 0 or more"),
        (("--retry-seconds", "-1", "a"), "the time for retries must be 0 s or more"),
        (("--retry-seconds", "nan", "a"), "the time for retries must be 0 s or more"),
        (("--url", "127.0.0.1:5001/score", "a"), "is not a URL that begins with https://"),
        (("--deployment", "gr\nün", "a"), "is not a deployment name"),
        (("--parameter", "prompts=1", "a"), "prompts is not a parameter"),
        (("--stream", "--output", "table", "a"), "--output table does not go with --stream"),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_message(score: Score, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = score(*arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_error_of_the_service_is_printed(score: Score) -> None:
    status, out, err = score("--parameter", "temperature=-1", "a")
    assert (status, out) == (1, "")
    assert "400 invalid_parameter" in err
    assert score("--retries", "0", "a", url="http://127.0.0.1:9/score")[0] == 1


def test_url_without_a_path_gets_a_hint(score: Score, demo_server: Server) -> None:
    status, _, err = score("a", url=f"http://127.0.0.1:{demo_server.port}")
    assert status == 1
    assert "a scoring URI ends in /score" in err


def test_azure_s_424_is_read_as_the_status_of_the_service(start_server: StartServer) -> None:
    refused = json.dumps({"error": {"code": "invalid_image", "message": "no"}}).encode()
    server = start_server((424, {"ms-azureml-model-error-statuscode": "400"}, refused), OK)
    with pytest.raises(EndpointError, match=r"^400 invalid_image: no") as raised:
        Endpoint(server.url).score(ask(["a"]))
    assert raised.value.status == 400
    assert len(server.request_headers) == 1  # no retry


def test_proxy_of_the_environment_is_used(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start_server(OK)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Endpoint("http://llava.example/score").score(ask(["a"])).body == [{"0": "fine"}]
    assert proxy.request_headers[0]["host"] == "llava.example"
    assert Endpoint(start_server(OK).url).score(ask(["a"])).body == [{"0": "fine"}]
    assert len(proxy.request_headers) == 1
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score").replace("http://", "me:p%40ss@"))
    Endpoint("http://llava.example/score").score(ask(["a"]))
    assert proxy.request_headers[1]["proxy-authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    with pytest.raises(ValueError, match="proxy"):
        Endpoint("http://llava.example/score")


@pytest.mark.parametrize("body", [b'{"message": "who are you?"}', b"who are you?"])
def test_error_of_the_platform_is_raised(start_server: StartServer, body: bytes) -> None:
    with pytest.raises(EndpointError, match="401: who are you") as raised:
        Endpoint(start_server((401, {}, body)).url).score(ask(["a"]))
    assert raised.value.status == 401


@pytest.mark.parametrize("body", [b"null", b'"[{}]"', b'{"choices": [{"texts": "a"}]}', b"7"])
def test_answer_of_an_unknown_form_is_printed_only_as_json(
    start_server: StartServer, score: Score, body: bytes
) -> None:
    server = start_server((200, {}, body))
    status, out, err = score("a", url=server.url)
    assert (status, out) == (1, "")
    assert "--output json prints the body" in err
    assert json.loads(score("a", "--output", "json", url=server.url)[1]) == json.loads(body)


def test_key_token_and_deployment_are_sent_with_their_own_request_only(
    start_server: StartServer, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(OK)
    Endpoint(server.url, "key", "green").score(ask(["a"]))
    tokens = iter(["first", "second"])
    endpoint = Endpoint(server.url, lambda: next(tokens))
    endpoint.score(ask(["a"]))
    endpoint.score(ask(["a"]))
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "from a variable")
    assert score("--deployment", "blue", "a", url=server.url)[0] == 0
    sent = [
        (headers.get("authorization"), headers.get("azureml-model-deployment")) for headers in server.request_headers
    ]
    assert sent == [
        ("Bearer key", "green"), ("Bearer first", None), ("Bearer second", None), ("Bearer from a variable", "blue"),
    ]  # fmt: skip
    assert "key" not in repr(Endpoint(server.url, "key"))


def test_key_is_stripped_and_a_key_with_a_line_break_is_refused_unprinted(
    start_server: StartServer, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(OK)
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", " key\n")
    assert score("a", url=server.url)[0] == 0
    assert server.request_headers[0]["authorization"] == "Bearer key"
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "sec\nret")
    status, _, err = score("a", url=server.url)
    assert status == 1
    assert "the key has characters" in err
    assert "sec" not in err


def test_missing_entra_login_prints_one_line(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    # azure-identity looks only for the login that this variable names, and sends no request.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    monkeypatch.setenv("PATH", "")
    status, out, err = score("--entra", "a")
    assert (status, out) == (1, "")
    assert "there is no Microsoft Entra token, `az login` gets one" in err
    assert len(err.splitlines()) == 1


def test_ask_takes_one_prompt_or_several_with_or_without_images() -> None:
    assert ask("What?") == ask(["What?"]) == {"input_data": {"input_string": ["What?"]}}
    assert ask("What?", [None]) == ask("What?")
    assert ask("What?", DIGIT) == ask("What?", str(DIGIT)) == ask("What?", [DIGIT])
    (empty,) = ask("What?", ["/dev/null"])["input_data"]["images"]
    assert empty == [""], "an empty file is sent, and the service refuses it"
    (digit,) = ask("a", [DIGIT])["input_data"]["images"]
    assert ask(["a", "b"], [str(DIGIT), None])["input_data"]["images"] == [*digit, None]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b'data: {"row": 0, "0": "a"}\n\n', "the stream was cut"),
        (
            b'data: {"row": 0, "0": "a"}\n\ndata: {"error": {"code": "deadline", "message": "late"}}\n\n',
            "^deadline: late",
        ),
        (b"data: {\n\n", "the stream was cut"),
        (b"data: 5\n\n", "the event 5 is not a JSON object"),
        (b'data: {"error": "boom"}\n\n', "^boom$"),
    ],
)
def test_broken_stream_raises(start_server: StartServer, stream: bytes, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        list(Endpoint(start_server((200, {"Content-Type": "text/event-stream"}, stream)).url).stream(ask(["a"])))


def test_parameter_stream_without_the_option_is_refused(score: Score) -> None:
    status, out, err = score("--parameter", "stream=true", "the sky is")
    assert (status, out) == (1, "")
    assert "the body asks for a stream" in err


def test_events_with_missing_fields_are_printed(start_server: StartServer, score: Score) -> None:
    events = [{"choices": None}, {"choices": [{"delta": None}]}, {"choices": [{"delta": {"content": "a"}}]}, {"0": "b"}]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    server = start_server((200, {"Content-Type": "text/event-stream"}, stream))
    assert score("--stream", "a", url=server.url) == (0, "ab\n", "")


def test_closed_pipe_and_ascii_terminal_raise_no_error(start_server: StartServer) -> None:
    server = start_server((200, {}, json.dumps([{"0": "\u2019\ud800 " * 50_000}]).encode()))
    command = f"{Path(sys.executable).parent / 'llava-serving'} score --url {server.url} a"
    completed = subprocess.run(
        ["bash", "-c", f"{command} | head -c 6; status=${{PIPESTATUS[0]}}; echo; echo $status"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (completed.stdout, completed.stderr) == ("\\u2019\n141\n", "")
    for encoding in ("ascii", "utf-8"):
        completed = subprocess.run(
            ["bash", "-c", f"{command} --output json"], capture_output=True, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert json.loads(completed.stdout)[0]["0"].startswith("\u2019\ud800 ")


def test_complete_answer_is_not_read_as_a_stream_and_done_needs_no_newline(start_server: StartServer) -> None:
    with pytest.raises(EndpointError, match="did not stream"):
        list(Endpoint(start_server(OK).url).stream(ask(["a"])))
    unterminated = b'data: {"row": 0, "0": "a"}\n\ndata: [DONE]'
    server = start_server((200, {"Content-Type": "text/event-stream"}, unterminated))
    assert list(Endpoint(server.url).stream(ask(["a"]))) == [{"row": 0, "0": "a"}]


def test_error_in_a_stream_is_printed_on_its_own_line(start_server: StartServer, score: Score) -> None:
    stream = b'data: {"row": 0, "0": "a red"}\n\ndata: {"error": {"code": "deadline", "message": "late"}}\n\n'
    printed = score("--stream", "a", url=start_server((200, {"Content-Type": "text/event-stream"}, stream)).url)
    assert printed == (1, "a red\n", "llava-serving: deadline: late\n")


def test_closing_a_stream_aborts_the_request_with_499(demo_server: Server) -> None:
    body = ask(["the sky is"], max_new_tokens=400, ignore_eos=True)
    events = Endpoint(f"http://127.0.0.1:{demo_server.port}/score").stream(body)
    assert "row" in next(events)
    events.close()
    deadline = time.monotonic() + 10
    while '"status": 499' not in demo_server.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert '"status": 499' in demo_server.log
