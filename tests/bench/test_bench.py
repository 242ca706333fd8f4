"""The load generator against a server that answers by script."""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Server

from llava_serving.bench import statistics as figures
from llava_serving.bench.caller import Target
from llava_serving.bench.workload import Question, bodies
from llava_serving.tools import bench as command

DELAY = 0.05


class Scripted(ThreadingHTTPServer):
    """Answers every request with `tokens` tokens of text; `script` says what becomes of the next ones instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        outcome = self.server.script.pop(0) if self.server.script else "answer"
        if outcome == "429":
            self.send_response(429)
            self.send_header("Retry-After", "3")
            self.end_headers()
        elif outcome == "drop":
            self.close_connection = True
        elif body.get("stream") or body.get("input_data", {}).get("parameters", {}).get("stream"):
            self._stream("messages" in body, outcome)
        else:
            self._whole("messages" in body)

    def _stream(self, openai: bool, outcome: str) -> None:
        self.send_response(200)
        self.end_headers()
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        time.sleep(DELAY)
        for text in ("a", " b"):
            self._event({"choices": [{"delta": {"content": text}}]} if openai else {"row": 0, "0": text})
            time.sleep(DELAY)
        if outcome == "error":
            self._event({"error": {"code": "generation_failed"}})
            return
        if outcome == "odd":
            self.wfile.write(b"data: 5\n\n")
            return
        self._event({"choices": [], "usage": usage} if openai else {"row": 0, "index": 0, "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _whole(self, openai: bool) -> None:
        self.send_response(200)
        for name, value in (("completion", 5), ("prompt", 10), ("cached", 4)):
            self.send_header(f"x-llava-{name}-tokens", str(value))
        self.end_headers()
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        self.wfile.write(json.dumps({"usage": usage} if openai else [{"0": "a b"}]).encode())

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def measured(url: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    small = ["--url", url, "--num-requests", "6", "--concurrency", "3", "--warmup", "1", "--image-size", "8"]
    status = command.run(parser.parse_args([*small, *options]))
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("api", ["score", "openai"])
def test_a_stream_is_measured_as_its_caller_sees_it(
    scripted: Scripted, capsys: pytest.CaptureFixture[str], api: str
) -> None:
    status, told = measured(scripted.url, capsys, "--api", api, "--goodput", f"ttft:{DELAY * 500}")
    assert status == 0
    assert (told["requests"], told["ok"], told["prompt_tokens"], told["output_tokens"]) == (6, 6, 60, 30)
    assert told["cached_tokens"] == 24
    assert told["ttft_seconds"]["p50"] >= DELAY
    assert told["itl_seconds"]["p50"] >= DELAY
    assert told["e2e_seconds"]["p50"] >= 3 * DELAY
    gap = told["e2e_seconds"]["mean"] - told["ttft_seconds"]["mean"]
    assert told["tpot_seconds"]["mean"] == pytest.approx(gap / 4)
    assert told["output_tokens_per_second"] == pytest.approx(30 / told["seconds"])
    assert told["goodput_requests_per_second"] == 0  # nobody's first text comes in half the delay
    assert len(scripted.bodies) == 7  # and one to warm up


@pytest.mark.parametrize("api", ["score", "openai"])
def test_whole_answers_have_no_ttft(scripted: Scripted, capsys: pytest.CaptureFixture[str], api: str) -> None:
    _, told = measured(scripted.url, capsys, "--api", api, "--no-stream", "--goodput", "e2e:60000")
    assert (told["ok"], told["output_tokens"], told["ttft_seconds"]["p50"]) == (6, 30, None)
    assert told["goodput_requests_per_second"] == told["requests_per_second"]


def test_refusals_and_failures_are_counted_apart(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    scripted.script = ["answer", "429", "drop", "error", "429"]  # the first warms up
    status, told = measured(scripted.url, capsys)
    assert status == 1
    assert (told["ok"], told["refused"], told["failed"]) == (2, 2, 2)
    assert sorted(told["errors"].values()) == [1, 1]
    scripted.script = ["answer", "odd"]
    status, told = measured(scripted.url, capsys)
    assert (status, told["ok"], told["errors"]) == (1, 5, {"ValueError": 1})
    scripted.script = ["answer", "429"]
    assert measured(scripted.url, capsys)[0] == 0


def test_a_server_that_is_not_there_fails_every_request(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = measured("http://127.0.0.1:9/score", capsys)
    assert (status, told["failed"], told["errors"]) == (1, 6, {"ConnectionRefusedError": 6})
    assert "Connection refused" in told["first_failure"]


def test_the_service_s_own_words_are_told(demo_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/score"
    status, told = measured(url, capsys, "--output-tokens", "5000")
    assert (status, told["errors"]) == (1, {"422": 6})
    assert "the model's context holds" in told["first_failure"]


def test_a_key_is_read_from_the_environment(
    scripted: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "secret")
    _, told = measured(scripted.url, capsys)
    assert scripted.headers[-1]["Authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(told)


def test_arrivals_are_a_poisson_process_s(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    times = command.arrivals(20_000, 50.0, seed=1)
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.05)  # of an exponential distribution, its mean
    assert times == command.arrivals(20_000, 50.0, seed=1) != command.arrivals(20_000, 50.0, seed=2)
    _, told = measured(scripted.url, capsys, "--request-rate", "30", "--seed", "4")
    assert told["ok"] == 6
    assert told["seconds"] >= command.arrivals(6, 30.0, 4)[-1]


def test_a_header_is_sent_and_not_told(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    _, told = measured(scripted.url, capsys, "--header", "Authorization:Bearer secret")
    assert all(headers["Authorization"] == "Bearer secret" for headers in scripted.headers)
    assert "secret" not in json.dumps(told)


def made(workload: str, seed: int = 0, api: Any = "score") -> list[dict[str, Any]]:
    question = Question(workload, 8, (3, 9))
    return [json.loads(body) for body in bodies(Target("", api, True), "m", question, 20, seed)]


def images(whole: list[dict[str, Any]]) -> list[str | None]:
    return [body["input_data"]["images"][0] for body in whole]


@pytest.mark.parametrize("workload", ["text", "image", "mixed", "shared-image"])
def test_a_seed_decides_every_request(workload: str) -> None:
    assert made(workload) == made(workload)
    assert made(workload) != made(workload, seed=1)
    lengths = {body["input_data"]["parameters"]["max_new_tokens"] for body in made(workload)}
    assert 3 <= min(lengths) < max(lengths) <= 9
    texts = [body["input_data"]["input_string"][0] for body in made(workload)]
    assert len(set(texts)) == 20


def test_pictures_are_everyone_s_own_unless_shared() -> None:
    assert set(images(made("text"))) == {None}
    assert len(set(images(made("image")))) == 20
    assert sum(image is None for image in images(made("mixed"))) == 10
    assert len(set(images(made("shared-image")))) == 1
    assert all(b["input_data"]["input_string"][0].startswith("<image>\n") for b in made("shared-image"))
    parts = made("shared-image", api="openai")[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]


@given(values=st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_equal_numpy_s(values: list[float]) -> None:
    told = figures.distribution(values)
    expected = {"mean": np.mean(values), **{f"p{p}": np.percentile(values, p) for p in figures.PERCENTILES}}
    assert told == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("api", ["score", "openai"])
def test_the_service_s_own_streams_are_counted_to_the_token(
    demo_server: Server, capsys: pytest.CaptureFixture[str], api: str
) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/score"
    status, told = measured(url, capsys, "--api", api, "--output-tokens", "7", "--workload", "mixed")
    assert (status, told["ok"], told["output_tokens"]) == (0, 6, 42)
