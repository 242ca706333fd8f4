"""Which requests the client sends again, when, and how often."""

import email.utils
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import OK, Cut, Response, Silence, StartServer

from llava_serving.client import Endpoint, EndpointError, ask
from llava_serving.client.retry_delay import MAX_JITTER_SECONDS, retry_delay
from llava_serving.tools import cli

BODY = ask(["a"])
FINE = [{"0": "fine"}]
EVENT_STREAM = {"Content-Type": "text/event-stream"}
STREAM: Response = (200, EVENT_STREAM, b'data: {"row": 0, "0": "fine"}\n\ndata: [DONE]\n\n')
EVENT = b'data: {"row": 0, "0": "a"}\n\n'


def error_of_the_service(code: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": "no", "param": None, "type": "server_error"}}).encode()


def wrapped(status: int, body: bytes = b"{}") -> Response:
    """Returns Azure's 424 around a status of the container."""
    return 424, {"ms-azureml-model-error-statuscode": str(status)}, body


ERROR_OF_AZURE = b'{"error": {"code": "UpstreamTimeout", "message": "no answer"}}'
TRANSIENT = {
    "429 of Azure": (429, {}, b""),
    "429 of the service": (429, {}, error_of_the_service("overloaded")),
    "429 in 424": wrapped(429, error_of_the_service("overloaded")),
    "503 of the service": (503, {}, error_of_the_service("draining")),
    "503 in 424": wrapped(503),
    "502 of Azure": (502, {}, b"<html>Bad Gateway</html>"),
    "504 of Azure": (504, {}, b"upstream request timeout"),
    "504 of Azure in JSON": (504, {}, ERROR_OF_AZURE),
    "502 in 424": wrapped(502, b"bad gateway"),
    "a reset": Cut(),
    "a close": Cut(reset=False),
}
FINAL = {
    "400": (400, {}, error_of_the_service("invalid_image")),
    "400 in 424": wrapped(400, error_of_the_service("invalid_image")),
    "401": (401, {}, b"who are you?"),
    "404": (404, {}, b"{}"),
    "408": (408, {}, b"the model took too long"),
    "413": (413, {}, error_of_the_service("body_too_large")),
    "424": (424, {}, b"{}"),
    "500": (500, {}, error_of_the_service("internal_error")),
    "504 of the service": (504, {}, error_of_the_service("deadline_exceeded")),
    "504 of the service in 424": wrapped(504, error_of_the_service("deadline_exceeded")),
    "redirect": (307, {"Location": "/other"}, b""),
    "cut status line": Cut(b"HTTP/1.1 200"),
    "closed status line": Cut(b"HTTP/1.1 200", reset=False),
    "cut headers": Cut(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
    "closed headers": Cut(b"HTTP/1.1 200 OK\r\nContent-Type", reset=False),
    "cut answer": Cut(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"0"'),
    "closed answer": Cut(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"0"', reset=False),
    "no HTTP": Cut(b"220 a mail server\r\n"),
}


@pytest.mark.parametrize("response", TRANSIENT.values(), ids=TRANSIENT)
def test_a_failure_before_the_answer_that_another_attempt_may_not_meet_is_repeated(
    start_server: StartServer, response: Response
) -> None:
    server = start_server(response, OK)
    assert Endpoint(server.url).score(BODY).body == FINE
    assert len(server.times) == 2
    server = start_server(response, STREAM)
    assert list(Endpoint(server.url).stream(BODY)) == [{"row": 0, "0": "fine"}]
    assert len(server.times) == 2


@pytest.mark.parametrize("response", FINAL.values(), ids=FINAL)
def test_another_failure_and_a_begun_response_are_not_repeated(start_server: StartServer, response: Response) -> None:
    server = start_server(response, OK)
    with pytest.raises(EndpointError):
        Endpoint(server.url).score(BODY)
    assert len(server.times) == 1


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("sent", [b"", b": a comment\n\n", EVENT])
def test_a_begun_stream_is_not_repeated(start_server: StartServer, sent: bytes, reset: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    server = start_server(Cut(head + sent, reset), STREAM)
    with pytest.raises(EndpointError, match="the stream was cut"):
        list(Endpoint(server.url).stream(BODY))
    assert len(server.times) == 1


def test_an_error_in_a_stream_is_not_repeated(start_server: StartServer) -> None:
    event = b"data: " + error_of_the_service("overloaded") + b"\n\n"
    server = start_server((200, EVENT_STREAM, event), STREAM)
    with pytest.raises(EndpointError, match=r"^overloaded"):
        list(Endpoint(server.url).stream(BODY))
    assert len(server.times) == 1


def test_a_request_that_timed_out_is_not_repeated(start_server: StartServer) -> None:
    server = start_server(Silence(3), OK)
    with pytest.raises(EndpointError, match="timed out"):
        Endpoint(server.url, timeout=0.3).score(BODY)
    assert len(server.times) == 1


def test_a_refused_connection_is_tried_again_until_the_server_listens(start_server: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = []
    timer = threading.Timer(1, lambda: server.append(start_server(OK, port=port)))
    timer.start()
    assert Endpoint(f"http://127.0.0.1:{port}/score", retries=1000).score(BODY).body == FINE
    timer.join()
    assert len(server[0].times) == 1


def test_an_unknown_host_is_not_tried_again() -> None:
    started = time.monotonic()
    with pytest.raises(EndpointError, match="resolve"):
        Endpoint("http://host.invalid/score", retries=1000, retry_seconds=1000.0).score(BODY)
    assert time.monotonic() - started < 60


def test_a_kept_connection_that_the_server_closed_is_replaced(start_server: StartServer) -> None:
    server = start_server(OK, Cut(reset=False), OK)
    endpoint = Endpoint(server.url)
    assert [endpoint.score(BODY).body for _ in range(2)] == [FINE, FINE]
    assert len(server.times) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_the_least_time_until_the_next_attempt(start_server: StartServer, status: int) -> None:
    server = start_server((status, {"Retry-After": "1"}, b"{}"), OK)
    answer = Endpoint(server.url).score(BODY)
    assert answer.body == FINE
    assert answer.headers["x-llava-total-ms"] == "1.0"
    assert 0.9 < server.times[1] - server.times[0] < 10


def test_retry_after_may_be_a_date(start_server: StartServer) -> None:
    server = start_server((503, {"Retry-After": email.utils.formatdate(time.time() + 3, usegmt=True)}, b"{}"), OK)
    Endpoint(server.url).score(BODY)
    assert server.times[1] - server.times[0] > 1.5


@pytest.mark.parametrize(
    "retry_after", ["soon", "-5", "nan", "Fri, 31 Dec 99999 23:59:59 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT"]
)
def test_invalid_retry_after_is_ignored(start_server: StartServer, retry_after: str) -> None:
    server = start_server((429, {"Retry-After": retry_after}, b"{}"), OK)
    assert Endpoint(server.url).score(BODY).body == FINE


def test_retry_after_of_an_hour_raises_at_once(start_server: StartServer) -> None:
    server = start_server((429, {"Retry-After": "3600"}, error_of_the_service("overloaded")), OK)
    with pytest.raises(EndpointError, match=r"^429 overloaded: no \(retry in 3600 s\)"):
        Endpoint(server.url).score(BODY)
    assert len(server.times) == 1


def test_last_error_is_raised_after_all_retries(start_server: StartServer) -> None:
    server = start_server((429, {}, error_of_the_service("overloaded")))
    with pytest.raises(EndpointError, match=r"^429 overloaded: no$") as raised:
        Endpoint(server.url, retries=2).score(BODY)
    assert (raised.value.status, len(server.times)) == (429, 3)


def test_no_attempt_begins_after_the_time_for_retries(start_server: StartServer) -> None:
    server = start_server((503, {}, b"{}"))
    with pytest.raises(EndpointError, match=r"^503"):
        Endpoint(server.url, retries=1000, retry_seconds=2.0).score(BODY)
    assert server.times[-1] - server.times[0] < 2.5
    assert 1 < len(server.times) < 1000


def test_retry_is_logged(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    Endpoint(start_server((429, {}, b'{"message": "full"}'), OK).url).score(BODY)
    assert "429: full; attempt 2 of 5 in " in caplog.text


@pytest.mark.parametrize("minimum", [None, 0.0, 7.0])
def test_delays_are_spread_from_the_minimum_over_a_time_that_doubles_up_to_its_limit(minimum: float | None) -> None:
    for attempt in (0, 1, 2, 3, 10, 5000):
        longest = min(2**attempt, MAX_JITTER_SECONDS)
        delays = [retry_delay(attempt, minimum) - (minimum or 0.0) for _ in range(500)]
        assert all(0 <= delay <= longest for delay in delays)
        assert min(delays) < longest / 4
        assert max(delays) > longest * 3 / 4


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `llava-serving score` for an endpoint; returns its exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "score", *arguments, "a"])
        status = cli.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("response", [TRANSIENT["504 of Azure"], TRANSIENT["a reset"]])
def test_score_repeats_a_request_as_often_as_its_options_allow(
    start_server: StartServer, score: Run, response: Response
) -> None:
    server = start_server(response, OK)
    assert score("--url", server.url)[:2] == (0, "fine\n")
    assert len(server.times) == 2
    for options in (("--retries", "0"), ("--retry-seconds", "0")):
        server = start_server(response, OK)
        assert score("--url", server.url, *options)[:2] == (1, "")
        assert len(server.times) == 1


def test_errors_say_whether_the_same_request_may_be_sent_again(start_server: StartServer) -> None:
    def is_transient(response: Any) -> bool:
        with pytest.raises(EndpointError) as raised:
            Endpoint(start_server(response).url, retries=0).score(BODY)
        return raised.value.is_transient

    assert [is_transient(TRANSIENT[name]) for name in ("429 of Azure", "a reset")] == [True, True]
    assert [is_transient(FINAL[name]) for name in ("400", "504 of the service", "cut answer")] == [False] * 3
