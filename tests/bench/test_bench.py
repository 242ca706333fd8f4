"""The load generator against a scripted server and against the real one."""

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

from llava_serving.bench import statistics
from llava_serving.bench.request import Target
from llava_serving.bench.workload import Workload, request_bodies
from llava_serving.tools import bench

DELAY = 0.05


class ScriptedServer(ThreadingHTTPServer):
    """Answers every request with five tokens; `script` names what happens to the next requests instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        action = self.server.script.pop(0) if self.server.script else "answer"
        if action.isdecimal():
            self.send_response(int(action))
            self.send_header("Retry-After", "3")
            self.end_headers()
        elif action == "drop":
            self.close_connection = True
        elif body.get("stream") or body.get("input_data", {}).get("parameters", {}).get("stream"):
            self._stream("messages" in body, action)
        else:
            self._complete("messages" in body)

    def _stream(self, openai: bool, action: str) -> None:
        self.send_response(200)
        self.end_headers()
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        time.sleep(DELAY)
        for text in ("a", " b"):
            self._event({"choices": [{"delta": {"content": text}}]} if openai else {"row": 0, "0": text})
            time.sleep(DELAY)
        if action == "error":
            self._event({"error": {"code": "generation_failed"}})
            return
        if action == "not an object":
            self.wfile.write(b"data: 5\n\n")
            return
        self._event({"choices": [], "usage": usage} if openai else {"row": 0, "index": 0, "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _complete(self, openai: bool) -> None:
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
def server() -> Iterator[ScriptedServer]:
    started = ScriptedServer()
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()


def run_bench(url: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Returns the exit status and the JSON of the last line."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    small = ["--url", url, "--num-requests", "6", "--concurrency", "3", "--warmup", "1", "--image-size", "8"]
    status = bench.run(parser.parse_args([*small, *options]))
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("api", ["score", "openai"])
def test_ttft_itl_tpot_and_e2e_of_a_stream(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], api: str
) -> None:
    status, results = run_bench(server.url, capsys, "--api", api, "--goodput", f"ttft:{DELAY * 500}")
    assert status == 0
    assert (results["requests"], results["ok"], results["prompt_tokens"], results["output_tokens"]) == (6, 6, 60, 30)
    assert results["cached_tokens"] == 24
    assert results["ttft_seconds"]["p50"] >= DELAY
    assert results["itl_seconds"]["p50"] >= DELAY
    assert results["e2e_seconds"]["p50"] >= 3 * DELAY
    gap = results["e2e_seconds"]["mean"] - results["ttft_seconds"]["mean"]
    assert results["tpot_seconds"]["mean"] == pytest.approx(gap / 4)
    assert results["output_tokens_per_second"] == pytest.approx(30 / results["seconds"])
    assert results["goodput_requests_per_second"] == 0  # the limit is half of DELAY
    assert len(server.bodies) == 7  # one more to warm up


@pytest.mark.parametrize("api", ["score", "openai"])
def test_complete_answers_have_no_ttft(server: ScriptedServer, capsys: pytest.CaptureFixture[str], api: str) -> None:
    _, results = run_bench(server.url, capsys, "--api", api, "--no-stream", "--goodput", "e2e:60000")
    assert (results["ok"], results["output_tokens"], results["ttft_seconds"]["p50"]) == (6, 30, None)
    assert results["goodput_requests_per_second"] == results["requests_per_second"]


def test_429_and_failures_are_counted_apart(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = ["answer", "429", "drop", "error", "429"]  # the first request warms up
    status, results = run_bench(server.url, capsys)
    assert status == 1
    assert (results["ok"], results["refused"], results["failed"]) == (2, 2, 2)
    assert sorted(results["errors"].values()) == [1, 1]
    server.script = ["answer", "not an object"]
    status, results = run_bench(server.url, capsys)
    assert (status, results["ok"], results["errors"]) == (1, 5, {"ValueError": 1})
    server.script = ["answer", "429"]
    assert run_bench(server.url, capsys)[0] == 0


@pytest.mark.parametrize("failure", ["429", "502", "503", "504", "drop"])
def test_no_request_is_sent_twice(server: ScriptedServer, capsys: pytest.CaptureFixture[str], failure: str) -> None:
    server.script = ["answer", failure, failure]
    _, results = run_bench(server.url, capsys)
    assert (results["ok"], results["refused"] + results["failed"]) == (4, 2)
    sent = [json.dumps(body) for body in server.bodies]
    assert len(sent) == len(set(sent)) == 7


def test_refused_connection_fails_every_request(capsys: pytest.CaptureFixture[str]) -> None:
    status, results = run_bench("http://127.0.0.1:9/score", capsys)
    assert (status, results["failed"], results["errors"]) == (1, 6, {"ConnectionRefusedError": 6})
    assert "Connection refused" in results["first_failure"]


def test_error_message_of_the_service_is_the_first_failure(
    demo_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/score"
    status, results = run_bench(url, capsys, "--output-tokens", "5000")
    assert (status, results["errors"]) == (1, {"422": 6})
    assert "the model's context holds" in results["first_failure"]


def test_key_is_read_from_the_environment(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_ENDPOINT_KEY", "secret")
    _, results = run_bench(server.url, capsys)
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(results)


def test_arrival_times_are_a_poisson_process(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    times = bench.arrival_times(20_000, 50.0, seed=1)
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    # The standard deviation of an exponential distribution equals its mean.
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert times == bench.arrival_times(20_000, 50.0, seed=1) != bench.arrival_times(20_000, 50.0, seed=2)
    _, results = run_bench(server.url, capsys, "--request-rate", "30", "--seed", "4")
    assert results["ok"] == 6
    assert results["seconds"] >= bench.arrival_times(6, 30.0, 4)[-1]


def test_header_is_sent_and_not_printed(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    _, results = run_bench(server.url, capsys, "--header", "Authorization:Bearer secret")
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)
    assert "secret" not in json.dumps(results)


def bodies(kind: str, seed: int = 0, api: Any = "score") -> list[dict[str, Any]]:
    """Returns twenty request bodies."""
    workload = Workload(kind, 8, (3, 9))
    return [json.loads(body) for body in request_bodies(Target("", api, True), "m", workload, 20, seed)]


def images(bodies: list[dict[str, Any]]) -> list[str | None]:
    return [body["input_data"]["images"][0] for body in bodies]


@pytest.mark.parametrize("kind", ["text", "image", "mixed", "shared-image"])
def test_seed_decides_every_request(kind: str) -> None:
    assert bodies(kind) == bodies(kind)
    assert bodies(kind) != bodies(kind, seed=1)
    lengths = {body["input_data"]["parameters"]["max_new_tokens"] for body in bodies(kind)}
    assert 3 <= min(lengths) < max(lengths) <= 9
    texts = [body["input_data"]["input_string"][0] for body in bodies(kind)]
    assert len(set(texts)) == 20


def test_each_request_has_its_own_image_unless_shared() -> None:
    assert set(images(bodies("text"))) == {None}
    assert len(set(images(bodies("image")))) == 20
    assert sum(image is None for image in images(bodies("mixed"))) == 10
    assert len(set(images(bodies("shared-image")))) == 1
    assert all(b["input_data"]["input_string"][0].startswith("<image>\n") for b in bodies("shared-image"))
    content = bodies("shared-image", api="openai")[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]


@given(values=st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_equal_numpy(values: list[float]) -> None:
    distribution = statistics.distribution(values)
    expected = {"mean": np.mean(values), **{f"p{p}": np.percentile(values, p) for p in statistics.PERCENTILES}}
    assert distribution == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("api", ["score", "openai"])
def test_output_tokens_of_the_service_s_streams_are_counted(
    demo_server: Server, capsys: pytest.CaptureFixture[str], api: str
) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/score"
    status, results = run_bench(url, capsys, "--api", api, "--output-tokens", "7", "--workload", "mixed")
    assert (status, results["ok"], results["output_tokens"]) == (0, 6, 42)
