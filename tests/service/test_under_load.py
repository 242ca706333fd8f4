"""The real server process with callers who leave, too many of them, little time, or a device that fails."""

import contextlib
import http.client
import json
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from server import ROOT, TIMEOUT_SECONDS, Answer, Event, Server, Stream

# score.py with a device that is slow or fails where a file says so, and less patience.
ENTRY_SCRIPT = f"""
import sys
import time
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from score import init, run
import llava_serving.api.body
import llava_serving.service.shutdown
from llava_serving.model.model_runner import ModelRunner

HERE = Path(__file__).parents[1]
launch, probe = ModelRunner.launch, ModelRunner.probe


def failing_launch(self, batch):
    if (HERE / "slow").exists():
        time.sleep(0.02)
    if (HERE / "fails_once").exists():
        (HERE / "fails_once").unlink()
        raise RuntimeError("this step fails")
    if (HERE / "sick").exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return launch(self, batch)


def failing_probe(self):
    if (HERE / "sick").exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    probe(self)


ModelRunner.launch, ModelRunner.probe = failing_launch, failing_probe
llava_serving.api.body.STALL_SECONDS = 1.0
llava_serving.service.shutdown.DRAIN_SECONDS = 2.0
"""
MANY = 480  # tokens: near the whole context of the demo model, on the slow device 10 s at least


class ScriptedServer(Server):
    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        script = folder / "entry.py"
        script.write_text(ENTRY_SCRIPT)
        super().__init__(folder / "log", environment=environment, entry_script=script)

    def mark(self, name: str) -> None:
        (self._folder / name).touch()

    def unmark(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        self.mark("slow")
        try:
            yield
        finally:
            self.unmark("slow")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    """One sequence runs, one waits."""
    with ScriptedServer(
        tmp_path_factory.mktemp("small"),
        GUNICORN_CMD_ARGS="--threads 18",
        LLAVA_MAX_NUM_SEQS="1",
        LLAVA_MAX_QUEUED_SEQS="1",
        LLAVA_MAX_SEQUENCES="2",
    ) as server:
        server.wait_until_healthy()
        yield server


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    """Requests have 2 s, and the last test ends it."""
    with ScriptedServer(
        tmp_path_factory.mktemp("frail"), GUNICORN_CMD_ARGS="--threads 96", LLAVA_REQUEST_TIMEOUT_SECONDS="2"
    ) as server:
        server.wait_until_healthy()
        yield server


def prompts(*texts: str, tokens: int = MANY, **parameters: Any) -> dict[str, Any]:
    given = {"max_new_tokens": tokens, "ignore_eos": True, **parameters}
    return {"input_data": {"input_string": list(texts), "parameters": given}}


def text_of(server: Server, body: dict[str, Any]) -> str:
    answer = server.score(body)
    assert answer.status == 200, answer.body
    return str(answer.json[0]["0"])


@pytest.fixture(scope="module")
def whole(demo_server: Server) -> str:
    """The long answer, when nothing goes wrong."""
    return text_of(demo_server, prompts("The sky is"))


def told(events: list[Event]) -> str:
    """The text of a stream of one sequence."""
    return "".join(event.data["0"] for event in events if isinstance(event.data, dict) and "0" in event.data)


def error_of(stream: Stream) -> dict[str, Any]:
    assert stream.headers["content-type"] == "application/json"
    return dict(json.loads(stream.read())["error"])


def raw(body: bytes, length: int | None = None, request_id: str = "") -> bytes:
    """A POST to /score as it goes over the wire, with `length` for its Content-Length."""
    head = (
        "POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"x-ms-client-request-id: {request_id}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def reset(connection: socket.socket) -> None:
    """Hangs up without a goodbye, as a caller does whose process is killed while data is on its way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    """Says that nothing more is sent, and goes on reading."""
    connection.shutdown(socket.SHUT_WR)


def answer_on(connection: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def patiently(server: Server, body: dict[str, Any]) -> Answer:
    """The answer, asked for again as long as there is no room."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (answer := server.score(body)).status == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def in_background(server: Server, *bodies: dict[str, Any], **headers: str) -> list[Future[Any]]:
    pool = ThreadPoolExecutor(len(bodies))
    futures = [pool.submit(server.score, body, **headers) for body in bodies]
    pool.shutdown(wait=False)
    return futures


def test_nothing_of_a_stop_string_is_sent_however_slowly_it_comes(small: ScriptedServer) -> None:
    body = prompts("The sky is", stop=["the grass was", "grass is green. T"], stream=True)
    with small.slow(), small.stream(body) as stream:  # an event for every token, or nearly
        events = list(stream)
    assert told(events) == "The sky is blue and the "
    assert events[-2].data["finish_reason"] == "stop"


# Callers who leave


def test_a_caller_who_leaves_a_stream_frees_its_sequence(demo_server: Server) -> None:
    alone = text_of(demo_server, prompts("1 2 3", tokens=200))
    (beside,) = in_background(demo_server, prompts("1 2 3", tokens=200))
    stream = demo_server.stream(prompts("The sky is", stream=True), x_ms_client_request_id="left-stream")
    assert next(iter(stream)).data["0"].startswith("The sky is")
    stream.close()
    line = demo_server.wait_for_record("left-stream")
    assert (line["status"], line["code"], line["stream"]) == (499, "client_closed", True)
    assert line["completion_tokens"] < MANY
    assert beside.result(TIMEOUT_SECONDS).json == [{"0": alone}]


@pytest.mark.parametrize("leave", [socket.socket.close, reset, half_close])
def test_who_left_a_stream_is_written_down(small: ScriptedServer, leave: Any) -> None:
    name = f"left-stream-{leave.__name__}"
    with small.slow(), small.connect() as connection:
        body = prompts("The sky is", stream=True)
        connection.sendall(raw(json.dumps(body).encode(), request_id=name))
        with connection.makefile("rb") as file:
            for _ in range(5):
                next(line for line in file if line.startswith(b"data: "))
        leave(connection)
        line = small.wait_for_record(name)
    assert (line["status"], line["code"], line["stream"]) == (499, "client_closed", True)
    assert 0 < line["completion_tokens"] < MANY
    assert line["prompt_tokens"] > 0


def test_who_sends_more_and_leaves_is_noticed(small: ScriptedServer) -> None:
    with small.slow():
        with small.connect() as connection:
            connection.sendall(raw(json.dumps(prompts("The sky is")).encode(), request_id="sent-more"))
            time.sleep(0.3)
            connection.sendall(b"\r\n")  # as old browsers do, and whoever sends several requests in a row
        line = small.wait_for_record("sent-more")
    assert line["status"] == 499
    assert line["completion_tokens"] < MANY


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_caller_who_leaves_before_the_answer_frees_its_sequences(small: ScriptedServer, leave: Any) -> None:
    with small.slow():
        for seconds in (0.2, 0.5, 2, 5):  # until it has begun, on whatever machine
            name = f"left-{leave.__name__}-{seconds}".replace(".", "-")
            connection = small.connect()
            connection.sendall(raw(json.dumps(prompts("The sky is")).encode(), request_id=name))
            time.sleep(seconds)
            leave(connection)
            line = small.wait_for_record(name)
            assert (line["status"], line["code"], line["stream"]) == (499, "client_closed", False)
            if line["completion_tokens"]:
                break
    assert 0 < line["completion_tokens"] < MANY
    assert line["finish_reasons"] == ["cancelled"]
    assert patiently(small, prompts("a", "b", tokens=1)).status == 200


def test_a_caller_who_leaves_while_waiting_frees_its_place(small: ScriptedServer) -> None:
    with small.slow(), small.stream(prompts("The sky is", stream=True)) as running:
        events = iter(running)
        next(events)
        waiting = small.connect()
        waiting.sendall(raw(json.dumps(prompts("1 2 3")).encode(), request_id="left-queue"))
        time.sleep(0.2)
        waiting.close()
        line = small.wait_for_record("left-queue")
        assert (line["status"], line["completion_tokens"], line["ttft_ms"]) == (499, 0, None)
        (next_one,) = in_background(small, prompts("1 2 3", tokens=2))
        small.unmark("slow")
        assert list(events)[-1].data == "[DONE]"
        assert next_one.result(TIMEOUT_SECONDS).status == 200


def test_more_callers_leave_than_there_are_threads(small: ScriptedServer) -> None:
    with small.slow():
        for number in range(20):
            stream = small.stream(prompts("The sky is", stream=True), x_ms_client_request_id=f"vanished-{number}")
            assert stream.status == 200
            next(iter(stream))
            stream.close()
            hasty = small.connect()
            hasty.sendall(raw(json.dumps(prompts("The sky is")).encode(), request_id=f"hasty-{number}"))
            hasty.close()
            for name in (f"vanished-{number}", f"hasty-{number}"):
                line = small.wait_for_record(name)
                assert line["status"] == 499
                assert line["completion_tokens"] < MANY
    assert patiently(small, prompts("The sky is", "1 2 3", tokens=1)).status == 200


# Too many callers


def test_who_does_not_fit_is_told_at_once(small: ScriptedServer, whole: str) -> None:
    with small.slow(), small.stream(prompts("The sky is", stream=True), x_ms_client_request_id="busy") as running:
        events = iter(running)
        first = next(events)
        for body in (prompts("1 2 3", n=2, tokens=2), prompts("1 2 3", "a", tokens=2)):  # refused whole
            answer = small.score(body)
            assert (answer.status, answer.json["error"]["code"]) == (429, "overloaded")
        both = in_background(small, prompts("1 2 3", tokens=3), prompts("1 2 3", tokens=3))
        refused = next(as_completed(both, TIMEOUT_SECONDS)).result()
        assert small.request("GET", "/").status == 200
        assert refused.status == 429
        assert set(refused.json["error"]) == {"code", "message", "param"}
        assert (refused.json["error"]["code"], refused.json["error"]["param"]) == ("overloaded", None)
        assert refused.headers["retry-after"].isdecimal()
        assert int(refused.headers["retry-after"]) >= 1
        with small.stream(prompts("1 2 3", stream=True)) as stream:
            assert stream.status == 429
            assert int(stream.headers["retry-after"]) >= 1
            assert error_of(stream)["code"] == "overloaded"
        assert not small.request_records("busy")  # it was still running when the others were told
        small.unmark("slow")
        assert told([first, *events]) == whole
    assert sorted(future.result(TIMEOUT_SECONDS).status for future in both) == [200, 429]


# Little time


def test_a_deadline_ends_the_answer_with_the_text_there_is(small: ScriptedServer, whole: str) -> None:
    with small.slow():
        answer = small.score(prompts("The sky is"), x_ms_request_timeout_ms="1500")
        with small.stream(prompts("The sky is", stream=True), x_ms_request_timeout_ms="1500") as stream:
            events = list(stream)
    assert (answer.status, answer.headers["x-llava-finish-reason"]) == (200, "deadline")
    assert 0 < int(answer.headers["x-llava-completion-tokens"]) < MANY
    text = answer.json[0]["0"]
    assert len("The sky is") < len(text) < len(whole)
    assert whole.startswith(text)
    assert len("The sky is") < len(told(events)) < len(whole)
    assert whole.startswith(told(events))
    assert events[-1].data == "[DONE]"
    assert events[-2].data["finish_reason"] == "deadline"
    assert 0 < events[-2].data["usage"]["completion_tokens"] < MANY


def test_a_request_that_is_not_begun_in_its_time(small: ScriptedServer) -> None:
    with small.slow(), small.stream(prompts("The sky is", stream=True)) as running:
        next(iter(running))
        answer = small.score(prompts("1 2 3"), x_ms_request_timeout_ms="300", x_ms_client_request_id="late")
        assert (answer.status, answer.json["error"]["code"]) == (504, "deadline_exceeded")
        with small.stream(prompts("1 2 3", stream=True), x_ms_request_timeout_ms="300") as stream:
            assert (stream.status, error_of(stream)["code"]) == (504, "deadline_exceeded")
    line = small.wait_for_record("late")
    assert (line["status"], line["code"], line["finish_reasons"]) == (504, "deadline_exceeded", ["deadline"])


@pytest.mark.parametrize("asked", ["soon", "-1", "0", "", "1.5", "9" * 400, "9" * 5000])
def test_a_timeout_that_says_nothing_changes_nothing(demo_server: Server, asked: str) -> None:
    assert demo_server.score(prompts("The sky is", tokens=2), x_ms_request_timeout_ms=asked).status == 200


def test_the_deployment_s_time_caps_the_caller_s(frail: ScriptedServer, whole: str) -> None:
    with frail.slow():
        answer = frail.score(prompts("The sky is"), x_ms_request_timeout_ms="170000")
    assert (answer.status, answer.headers["x-llava-finish-reason"]) == (200, "deadline")
    assert whole.startswith(answer.json[0]["0"])


# Callers who send badly


def test_stalled_callers_are_in_nobody_s_way(demo_server: Server) -> None:
    tracebacks = demo_server.log.count("Traceback")
    request = raw(json.dumps(prompts("The sky is")).encode(), request_id="half-a-body")
    with contextlib.ExitStack() as stalled:
        for begun in (b"", b"POST /sc", request.partition(b"Content-Length")[0], request[:-20]):
            for _ in range(5):
                stalled.enter_context(demo_server.connect()).sendall(begun)
        assert demo_server.request("GET", "/").status == 200
        assert text_of(demo_server, prompts("The sky is", tokens=2)).startswith("The sky is")
        assert not demo_server.request_records("half-a-body")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(lines := demo_server.request_records("half-a-body")) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [(line["status"], line["code"]) for line in lines] == [(400, "incomplete_body")] * 5
    assert demo_server.request("GET", "/").status == 200
    assert demo_server.log.count("Traceback") == tracebacks


def test_a_body_that_does_not_come_is_told(small: ScriptedServer) -> None:
    request = raw(json.dumps(prompts("The sky is")).encode())
    with small.connect() as connection:
        connection.sendall(request[:-20])
        status, body = answer_on(connection)
    assert (status, body["error"]["code"]) == (408, "body_timeout")


@pytest.mark.parametrize("sent", [b"", b'{"input_data": ["a', json.dumps(prompts("a", tokens=1)).encode()])
def test_a_body_shorter_than_announced_is_no_request(demo_server: Server, sent: bytes) -> None:
    with demo_server.connect() as connection:
        connection.sendall(raw(sent, len(sent) + 10))
        connection.shutdown(socket.SHUT_WR)
        status, body = answer_on(connection)
    assert (status, body["error"]["code"]) == (400, "incomplete_body")


@pytest.mark.parametrize("chunks", [b"ZZ\r\n{}\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"-1\r\n", b"2\r\n{}"])
def test_a_malformed_chunked_body_is_told(demo_server: Server, chunks: bytes) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with demo_server.connect() as connection:
        connection.sendall(head + chunks)
        connection.shutdown(socket.SHUT_WR)
        status, body = answer_on(connection)
    assert (status, body["error"]["code"]) == (400, "unreadable_body")


def test_a_chunked_body_is_read(demo_server: Server) -> None:
    body = json.dumps(prompts("The sky is", tokens=1)).encode()
    head = b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[:7], body[7:]]
    with demo_server.connect() as connection:
        connection.sendall(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")
        assert answer_on(connection)[0] == 200


def test_who_sends_far_too_much_gets_to_read_why(demo_server: Server) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{demo_server.port}/score", bytes(68 * 2**20), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    assert refused.value.code == 413
    assert json.loads(refused.value.read())["error"]["code"] == "body_too_large"


# The request log

FIELDS = {
    "request_id", "status", "code", "form", "stream", "rows", "sequences", "images", "prompt_tokens", "cached_tokens",
    "completion_tokens", "finish_reasons", "queue_ms", "ttft_ms", "total_ms",
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_each_request_is_written_down_once(demo_server: Server, stream: bool) -> None:
    body = prompts("Xylophone sky", "1 2 3", tokens=4, n=2, stream=stream)
    name = f"record-{stream}"
    answer = demo_server.score(body, x_ms_client_request_id=name)
    assert answer.status == 200
    line = demo_server.wait_for_record(name)
    assert set(line) == FIELDS
    assert (line["status"], line["code"], line["form"], line["stream"]) == (200, None, "prompts", stream)
    assert (line["rows"], line["sequences"], line["images"]) == (2, 4, 0)
    assert (line["completion_tokens"], line["finish_reasons"]) == (16, ["length"] * 4)
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["total_ms"]
    if not stream:
        assert line["prompt_tokens"] == int(answer.headers["x-llava-prompt-tokens"])
    assert demo_server.score(prompts("a", tokens=1)).status == 200
    assert len(demo_server.request_records(name)) == 1
    assert "Xylophone" not in demo_server.log


def test_what_is_refused_is_written_down_too(demo_server: Server) -> None:
    demo_server.score(prompts("Xylophone", tokens=10**6), x_ms_client_request_id='re"fu\\sed')
    line = demo_server.wait_for_record("refused")
    assert set(line) == FIELDS
    assert (line["status"], line["code"]) == (422, "context_length_exceeded")
    assert (line["rows"], line["completion_tokens"], line["finish_reasons"], line["ttft_ms"]) == (1, 0, [], None)
    demo_server.score(b'{"Xylophone', x_ms_client_request_id="malformed")
    line = demo_server.wait_for_record("malformed")
    assert (line["status"], line["code"], line["form"]) == (400, "invalid_json", None)
    assert "Xylophone" not in demo_server.log


# A device that fails


def test_a_step_that_fails_ends_its_requests_alone(small: ScriptedServer, whole: str) -> None:
    with small.slow(), small.stream(prompts("The sky is", stream=True), x_ms_client_request_id="failed") as running:
        events = iter(running)
        assert next(events).data["0"].startswith("The sky is")
        (waiting,) = in_background(small, prompts("The sky is"))
        time.sleep(0.2)
        small.mark("fails_once")
        *_, last = events
    assert last.name == "error"
    assert last.data["error"]["code"] == "generation_failed"
    line = small.wait_for_record("failed")
    assert (line["status"], line["code"]) == (500, "generation_failed")
    assert waiting.result(TIMEOUT_SECONDS).json == [{"0": whole}]
    small.mark("fails_once")
    answer = small.score(prompts("The sky is"))
    assert (answer.status, answer.json["error"]["code"]) == (500, "generation_failed")
    assert "step fails" not in answer.json["error"]["message"]
    small.mark("fails_once")
    with small.stream(prompts("The sky is", stream=True)) as stream:
        assert (stream.status, error_of(stream)["code"]) == (500, "generation_failed")
    assert text_of(small, prompts("The sky is")) == whole


def test_a_sick_device_ends_the_server(frail: ScriptedServer) -> None:
    with frail.slow(), frail.stream(prompts("The sky is", stream=True)) as running:
        events = iter(running)
        assert next(events).data["0"].startswith("The sky is")
        (beside,) = in_background(frail, prompts("The sky is"))
        time.sleep(0.2)
        frail.mark("sick")
        *_, last = events
        assert last.name == "error"
        assert last.data["error"]["code"] in ("generation_failed", "unhealthy")
        assert beside.result(TIMEOUT_SECONDS).status in (500, 503)
    assert frail.wait_until_ended() != 0
    (farewell,) = (line for line in frail.log.splitlines()[-8:] if "the service ends itself" in line)
    assert "illegal memory access" in farewell


# The end


def test_sigterm_lets_answers_finish(tmp_path: Path, whole: str) -> None:
    with ScriptedServer(tmp_path, GUNICORN_CMD_ARGS="--threads 96") as server, contextlib.ExitStack() as stack:
        server.wait_until_healthy()
        stack.enter_context(server.slow())
        long = iter(stack.enter_context(server.stream(prompts("The sky is", stream=True))))
        waiting = in_background(server, prompts("The sky is"))[0]
        first = next(long)
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
        stack.callback(kept.close)
        assert _malformed(kept)[0] == 400
        short = iter(stack.enter_context(server.stream(prompts("1 2 3", stream=True, tokens=15))))
        begun = next(short)
        server.terminate()
        while (refused := _malformed(kept))[0] == 400:  # the connection is open; the signal is on its way
            time.sleep(0.01)
        assert refused == (503, "draining")
        newcomer = in_background(server, prompts("a", tokens=1))[0]
        finished, cut = [begun, *short], [first, *long]
        assert finished[-2].data["finish_reason"] == "length"
        assert cut[-2].data["finish_reason"] == "deadline"  # the time to drain is over
        assert finished[-1].data == cut[-1].data == "[DONE]"
        assert len("The sky is") < len(told(cut)) < len(whole)
        assert whole.startswith(told(cut))
        answer = waiting.result(TIMEOUT_SECONDS)
        assert (answer.status, answer.headers["x-llava-finish-reason"]) == (200, "deadline")
        assert whole.startswith(answer.json[0]["0"])
        assert server.wait_until_ended() == 0
        with contextlib.suppress(OSError, http.client.HTTPException):  # refused, or dropped with the process
            assert newcomer.result(TIMEOUT_SECONDS).status == 503
        assert "Traceback" not in server.log


def _malformed(kept: http.client.HTTPConnection) -> tuple[int, str]:
    kept.request("POST", "/score", b"{", {"Content-Type": "application/json"})
    response = kept.getresponse()
    return response.status, json.loads(response.read())["error"]["code"]
