"""`llava-serving score` and its Python side, against the real server and against one that is busy."""

import base64
import email.utils
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from server import Server

from llava_serving.client import Endpoint, EndpointError, ask
from llava_serving.tools import cli
from llava_serving.weights.model_dir import DEMO

SHAPES = DEMO / "pictures" / "shapes.png"
DIGIT = DEMO / "pictures" / "digit.png"
ABOUT_SHAPES = "a red circle, a blue cross, a yellow triangle"
Score = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(demo_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Score:
    """Runs the command in this process: its exit status, what it printed, and what it said."""

    def run(*arguments: str, url: str = f"http://127.0.0.1:{demo_server.port}/score") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "score", "--url", url, *arguments])
        status = cli.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_asks_about_a_picture(score: Score) -> None:
    assert score("--image", str(SHAPES), "What is in the image?") == (0, ABOUT_SHAPES + "\n", "")


@pytest.mark.parametrize("output", ["text", "table"])
def test_several_prompts_have_a_picture_each(score: Score, output: str) -> None:
    pictures = ("--image", str(SHAPES), "--image", str(DIGIT))
    status, out, _ = score(*pictures, "--output", output, "What is in the image?", "What is in the image?")
    assert status == 0
    first, second = out.splitlines()
    assert first == (ABOUT_SHAPES if output == "text" else f"  0  0  {ABOUT_SHAPES}")
    assert second != first


def test_streams_the_same_text(score: Score) -> None:
    assert score("--stream", "--image", str(SHAPES), "What is in the image?") == (0, ABOUT_SHAPES + "\n", "")
    both = score("--stream", "--image", str(SHAPES), "What is in the image?", "What is in the image?")
    assert both == (0, f"{ABOUT_SHAPES}\n{ABOUT_SHAPES}\n", "")
    _, out, _ = score("--stream", "--output", "json", "--image", str(SHAPES), "What is in the image?")
    events = [json.loads(line) for line in out.splitlines()]
    assert "".join(event.get("0", "") for event in events) == ABOUT_SHAPES
    assert events[-1]["finish_reason"] == "stop"


def test_streams_many_sequences_in_order_and_openai_s_form(score: Score, tmp_path: Path) -> None:
    seeded = ("--parameter", "n=12", "--parameter", "temperature=2", "--parameter", "seed=1", "the sky is")
    assert score("--stream", *seeded) == score(*seeded)
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "temperature": 2, "seed": 1, "max_tokens": 5}
    (tmp_path / "request.json").write_text(json.dumps(body))
    whole = score("--file", str(tmp_path / "request.json"))
    assert whole[1].strip()
    assert score("--stream", "--file", str(tmp_path / "request.json")) == whole


def test_parameters_and_json(score: Score) -> None:
    status, out, _ = score("--parameter", "max_new_tokens=3", "--parameter", "n=2", "--output", "json", "the sky is")
    assert status == 0
    assert json.loads(out)[0].keys() == {"0", "1"}


def test_a_body_from_a_file_and_from_standard_input(
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
    ("arguments", "said"),
    [
        ((), "give prompts, or a body"),
        (("--file", "x", "a"), "give prompts, or a body"),
        (("--image", "/no/such/file", "a"), "/no/such/file"),
        (("--parameter", "n", "a"), "--parameter n is not NAME=VALUE"),
        (("--image", str(SHAPES), "--image", str(SHAPES), "a", "b", "c"), "2 images for 3 prompts"),
        (("--file", str(SHAPES)), f"{SHAPES} is not one JSON value"),
        (("--file", "/dev/null"), "/dev/null is not one JSON value"),
        (("--parameter", 'stop=["', "a"), "begins as JSON and is none"),
        (("--image", "https://example.com/cat.png", "a"), "images are files here"),
        (("--timeout", "0", "a"), "a timeout is more than 0 s"),
        (("--timeout", "inf", "a"), "a timeout is more than 0 s"),
        (("--retries", "-1", "a"), "0 retries or more"),
        (("--url", "127.0.0.1:5001/score", "a"), "is no URL: it begins with https://"),
        (("--deployment", "gr\nün", "a"), "is no deployment's name"),
        (("--parameter", "prompts=1", "a"), "prompts is no parameter"),
        (("--stream", "--output", "table", "a"), "--output table is for whole answers"),
    ],
)
def test_what_cannot_be_asked(score: Score, arguments: tuple[str, ...], said: str) -> None:
    status, out, err = score(*arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_the_service_s_refusal_is_told(score: Score) -> None:
    status, out, err = score("--parameter", "temperature=-1", "a")
    assert (status, out) == (1, "")
    assert "400 invalid_parameter" in err
    assert score("a", url="http://127.0.0.1:9/score")[0] == 1


def test_a_url_without_its_path_is_told(score: Score, demo_server: Server) -> None:
    status, _, err = score("a", url=f"http://127.0.0.1:{demo_server.port}")
    assert status == 1
    assert "a scoring URI ends in /score" in err


class Busy(ThreadingHTTPServer):
    """Answers what it is told to, in order, and the last for ever; remembers what it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, str]] = []
        self.times: list[float] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Busy)
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        self.server.times.append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        answers = self.server.answers
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


OK = (200, {"x-llava-total-ms": "1.0"}, b'[{"0": "fine"}]')


@pytest.fixture
def busy() -> Iterator[Callable[..., Busy]]:
    started: list[Busy] = []

    def start(*answers: tuple[int, dict[str, str], bytes]) -> Busy:
        server = Busy(*answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again_when_it_says(busy: Callable[..., Busy], status: int) -> None:
    server = busy((status, {"Retry-After": "1"}, b"{}"), OK)
    answer = Endpoint(server.url).score(ask(["a"]))
    assert answer.body == [{"0": "fine"}]
    assert answer.headers["x-llava-total-ms"] == "1.0"
    assert 0.9 < server.times[1] - server.times[0] < 5


def test_azure_s_424_around_a_busy_instance(busy: Callable[..., Busy]) -> None:
    around_busy = (424, {"ms-azureml-model-error-statuscode": "429", "Retry-After": "0"}, b"{}")
    assert Endpoint(busy(around_busy, OK).url).score(ask(["a"])).body == [{"0": "fine"}]
    refused = json.dumps({"error": {"code": "invalid_image", "message": "no"}}).encode()
    server = busy((424, {"ms-azureml-model-error-statuscode": "400"}, refused), OK)
    with pytest.raises(EndpointError, match=r"^400 invalid_image: no") as told:
        Endpoint(server.url).score(ask(["a"]))
    assert told.value.status == 400
    assert len(server.asked) == 1  # it would be refused again


@pytest.mark.parametrize("told", ["soon", "Fri, 31 Dec 99999 23:59:59 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT"])
def test_a_time_that_is_none_is_no_harm(busy: Callable[..., Busy], told: str) -> None:
    assert Endpoint(busy((429, {"Retry-After": told}, b"{}"), OK).url).score(ask(["a"])).body == [{"0": "fine"}]


def test_the_environment_s_proxy_is_gone_through(busy: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = busy(OK)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Endpoint("http://llava.example/score").score(ask(["a"])).body == [{"0": "fine"}]
    assert proxy.asked[0]["host"] == "llava.example"
    assert Endpoint(busy(OK).url).score(ask(["a"])).body == [{"0": "fine"}]
    assert len(proxy.asked) == 1
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score").replace("http://", "me:p%40ss@"))
    Endpoint("http://llava.example/score").score(ask(["a"]))
    assert proxy.asked[1]["proxy-authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    with pytest.raises(ValueError, match="proxy"):
        Endpoint("http://llava.example/score")


def test_a_date_is_waited_for(busy: Callable[..., Busy]) -> None:
    server = busy((503, {"Retry-After": email.utils.formatdate(time.time() + 3, usegmt=True)}, b"{}"), OK)
    Endpoint(server.url).score(ask(["a"]))
    assert server.times[1] - server.times[0] > 1.5


def test_who_is_told_to_wait_for_long_is_not_kept_waiting(busy: Callable[..., Busy]) -> None:
    server = busy((429, {"Retry-After": "3600"}, b'{"error": {"code": "overloaded", "message": "full"}}'), OK)
    with pytest.raises(EndpointError, match=r"^429 overloaded: full \(come again in 3600 s\)"):
        Endpoint(server.url).score(ask(["a"]))
    assert len(server.asked) == 1


def test_a_wait_is_told(busy: Callable[..., Busy], caplog: pytest.LogCaptureFixture) -> None:
    Endpoint(busy((429, {"Retry-After": "0"}, b'{"message": "full"}'), OK).url).score(ask(["a"]))
    assert "429: full; asked again in 0 s" in caplog.text


def test_an_endpoint_that_names_no_time_is_asked_later_each_time(
    busy: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("llava_serving.client.endpoint.time.sleep", slept.append)
    with pytest.raises(EndpointError):
        Endpoint(busy((429, {}, b"{}")).url).score(ask(["a"]))
    assert len(slept) == 4
    assert all(most / 2 <= seconds <= most for seconds, most in zip(slept, (1, 2, 4, 8), strict=True))


def test_it_gives_up_with_the_last_answer(busy: Callable[..., Busy]) -> None:
    full = b'{"error": {"code": "overloaded", "message": "as many as are let in"}}'
    server = busy((429, {"Retry-After": "0"}, full))
    with pytest.raises(EndpointError, match="429 overloaded: as many") as refused:
        Endpoint(server.url, retries=2).score(ask(["a"]))
    assert (refused.value.status, len(server.asked)) == (429, 3)


@pytest.mark.parametrize("body", [b'{"message": "who are you?"}', b"who are you?"])
def test_the_platform_s_own_errors(busy: Callable[..., Busy], body: bytes) -> None:
    with pytest.raises(EndpointError, match="401: who are you") as refused:
        Endpoint(busy((401, {}, body)).url).score(ask(["a"]))
    assert refused.value.status == 401


@pytest.mark.parametrize("body", [b"null", b'"[{}]"', b'{"choices": [{"text": "a"}]}', b"7"])
def test_a_body_of_no_known_form_is_told_and_printed_as_json(
    busy: Callable[..., Busy], score: Score, body: bytes
) -> None:
    server = busy((200, {}, body))
    status, out, err = score("a", url=server.url)
    assert (status, out) == (1, "")
    assert "--output json prints it as it is" in err
    assert json.loads(score("a", "--output", "json", url=server.url)[1]) == json.loads(body)


def test_keys_tokens_and_deployments_go_with_their_own_requests(
    busy: Callable[..., Busy], score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = busy(OK)
    Endpoint(server.url, "key", "green").score(ask(["a"]))
    tokens = iter(["first", "second"])
    endpoint = Endpoint(server.url, lambda: next(tokens))
    endpoint.score(ask(["a"]))
    endpoint.score(ask(["a"]))
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "from the desk")
    assert score("--deployment", "blue", "a", url=server.url)[0] == 0
    told = [(asked.get("authorization"), asked.get("azureml-model-deployment")) for asked in server.asked]
    assert told == [
        ("Bearer key", "green"), ("Bearer first", None), ("Bearer second", None), ("Bearer from the desk", "blue"),
    ]  # fmt: skip
    assert "key" not in repr(Endpoint(server.url, "key"))


def test_a_key_is_no_header_s_worth_of_harm(
    busy: Callable[..., Busy], score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = busy(OK)
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", " key\n")
    assert score("a", url=server.url)[0] == 0
    assert server.asked[0]["authorization"] == "Bearer key"
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "sec\nret")
    status, _, err = score("a", url=server.url)
    assert status == 1
    assert "the key has characters" in err
    assert "sec" not in err


def test_without_a_login_there_is_one_line(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing of the cloud is asked for: the environment names the one kind of login to look for.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    monkeypatch.setenv("PATH", "")
    status, out, err = score("--entra", "a")
    assert (status, out) == (1, "")
    assert "there is no Microsoft Entra token, `az login` gets one" in err
    assert len(err.splitlines()) == 1


def test_one_prompt_needs_no_list_and_not_every_prompt_a_picture() -> None:
    assert ask("What?") == ask(["What?"]) == {"input_data": {"input_string": ["What?"]}}
    assert ask("What?", [None]) == ask("What?")
    assert ask("What?", DIGIT) == ask("What?", str(DIGIT)) == ask("What?", [DIGIT])
    (empty,) = ask("What?", ["/dev/null"])["input_data"]["images"]
    assert empty == [""], "a picture without a byte is one that the service refuses"
    (alone,) = ask("a", [DIGIT])["input_data"]["images"]
    assert ask(["a", "b"], [str(DIGIT), None])["input_data"]["images"] == [*alone, None]


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b'data: {"row": 0, "0": "a"}\n\n', "the stream was cut"),
        (
            b'data: {"row": 0, "0": "a"}\n\ndata: {"error": {"code": "deadline", "message": "late"}}\n\n',
            "^deadline: late",
        ),
        (b"data: {\n\n", "the stream was cut"),
        (b"data: 5\n\n", "5 is no event"),
        (b'data: {"error": "boom"}\n\n', "^boom$"),
    ],
)
def test_a_stream_that_goes_wrong(busy: Callable[..., Busy], stream: bytes, said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        list(Endpoint(busy((200, {"Content-Type": "text/event-stream"}, stream)).url).stream(ask(["a"])))


def test_a_body_that_asks_for_a_stream_is_not_taken_for_an_answer(score: Score) -> None:
    status, out, err = score("--parameter", "stream=true", "the sky is")
    assert (status, out) == (1, "")
    assert "the body asks for a stream" in err


def test_events_that_leave_things_out_are_no_harm(busy: Callable[..., Busy], score: Score) -> None:
    events = [{"choices": None}, {"choices": [{"delta": None}]}, {"choices": [{"delta": {"content": "a"}}]}, {"0": "b"}]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    server = busy((200, {"Content-Type": "text/event-stream"}, stream))
    assert score("--stream", "a", url=server.url) == (0, "ab\n", "")


def test_a_reader_who_has_enough_and_a_terminal_without_the_characters_end_nothing(busy: Callable[..., Busy]) -> None:
    server = busy((200, {}, json.dumps([{"0": "\u2019\ud800 " * 50_000}]).encode()))
    command = f"{Path(sys.executable).parent / 'llava-serving'} score --url {server.url} a"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 6; status=${{PIPESTATUS[0]}}; echo; echo $status"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("\\u2019\n141\n", "")
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            ["bash", "-c", f"{command} --output json"], capture_output=True, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert json.loads(done.stdout)[0]["0"].startswith("\u2019\ud800 ")


def test_what_is_no_stream_is_not_taken_for_one(busy: Callable[..., Busy]) -> None:
    with pytest.raises(EndpointError, match="did not stream"):
        list(Endpoint(busy(OK).url).stream(ask(["a"])))
    unended = b'data: {"row": 0, "0": "a"}\n\ndata: [DONE]'
    server = busy((200, {"Content-Type": "text/event-stream"}, unended))
    assert list(Endpoint(server.url).stream(ask(["a"]))) == [{"row": 0, "0": "a"}]


def test_an_error_in_a_stream_is_told_on_a_line_of_its_own(busy: Callable[..., Busy], score: Score) -> None:
    stream = b'data: {"row": 0, "0": "a red"}\n\ndata: {"error": {"code": "deadline", "message": "late"}}\n\n'
    told = score("--stream", "a", url=busy((200, {"Content-Type": "text/event-stream"}, stream)).url)
    assert told == (1, "a red\n", "llava-serving: deadline: late\n")


def test_leaving_a_stream_ends_the_answer(demo_server: Server) -> None:
    body = ask(["the sky is"], max_new_tokens=400, ignore_eos=True)
    events = Endpoint(f"http://127.0.0.1:{demo_server.port}/score").stream(body)
    assert "row" in next(events)
    events.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while '"status": 499' not in demo_server.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert '"status": 499' in demo_server.log
