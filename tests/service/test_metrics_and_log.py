"""The metrics as a scraper and as Application Insights would see them, and the log's line for each request."""

import io
import json
import logging
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from server import Server
from test_scoring import PICTURE, score, scoring

from llava_serving.api.body import HttpRequest
from llava_serving.engine.completion import Completion
from llava_serving.engine.stats import Stats
from llava_serving.service.metrics import HISTOGRAMS, LABELS, Metrics, metric_readers
from llava_serving.service.request_log import RequestRecord
from llava_serving.weights.loader import LoadedModel

COMPLETION = Completion("a", (5, 6, 7), "length", (), 10, 4, 0.5, 1.0, 3.0)


def values(reader: InMemoryMetricReader) -> dict[str, float]:
    """Of every instrument with one series: its value, or for a histogram its sum."""
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        found[metric.name] = point.sum if hasattr(point, "sum") else point.value
    return found


def test_the_instruments_read_the_engine_s_counts() -> None:
    reader = InMemoryMetricReader()
    stats = Stats()
    metrics = Metrics(stats, [reader])
    stats.num_waiting, stats.kv_cache_usage, stats.prefix_cache_hits = 3, 0.25, 96
    metrics.finished(COMPLETION)
    metrics.refused(429, "overloaded")
    assert values(reader).items() >= {
        "vllm:num_requests_waiting": 3, "vllm:kv_cache_usage_perc": 0.25, "vllm:prefix_cache_hits": 96,
        "vllm:time_to_first_token_seconds": 1.0, "vllm:request_time_per_output_token_seconds": 1.0,
        "vllm:e2e_request_latency_seconds": 3.0, "vllm:request_queue_time_seconds": 0.5,
        "vllm:request_prompt_tokens": 10, "vllm:request_generation_tokens": 3, "vllm:request_success": 1,
        "llava:request_errors": 1,
    }.items()  # fmt: skip


def test_prometheus_reads_vllm_s_names() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (reader,) = metric_readers({}, port)
    metrics = Metrics(Stats(num_running=2, generation_tokens=7), [reader])
    metrics.finished(COMPLETION)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        page = response.read().decode()
    assert metric_readers({}, port) == []  # taken: told, and the service starts all the same
    reader.shutdown()
    series = dict(re.findall(r"^(\S+) (\S+)$", page, re.M))
    model = 'engine="0",model_name="llava"'
    assert float(series[f"vllm:num_requests_running{{{model}}}"]) == 2
    assert float(series[f"vllm:generation_tokens_total{{{model}}}"]) == 7
    success = f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{LABELS["model_name"]}"}}'
    assert float(series[success]) == 1
    for name in HISTOGRAMS:
        assert float(series[f"{name}_count{{{model}}}"]) == 1
        assert f'{name}_bucket{{engine="0",le="+Inf",model_name="llava"}}' in series


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "true"}, False),
        ({"AML_APP_INSIGHTS_KEY": "0" * 32}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "true", "AML_APP_INSIGHTS_KEY": "no key"}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "True", "AML_APP_INSIGHTS_KEY": "00000000-0000-4000-8000-000000000000"}, True),
    ],
)
def test_application_insights_gets_them_where_the_server_uses_it(environment: dict[str, str], sent: bool) -> None:
    readers = metric_readers(environment, None)
    assert [isinstance(r, PeriodicExportingMetricReader) for r in readers] == [True] * sent
    for reader in readers:
        assert isinstance(reader._exporter, AzureMonitorMetricExporter)  # type: ignore[attr-defined]
        reader.shutdown(timeout_millis=1)


@pytest.mark.parametrize(("copies", "held_back"), [("false", False), ("true", True)])
def test_a_stream_comes_as_it_is_made_unless_application_insights_takes_a_copy(
    tmp_path: Path, copies: str, held_back: bool
) -> None:
    """The variable that deployment.yml sets; nothing reaches Application Insights from here, which stops nothing."""
    insights = {
        "AML_APP_INSIGHTS_ENABLED": "true", "AML_APP_INSIGHTS_KEY": "00000000-0000-4000-8000-000000000000",
        "APP_INSIGHTS_LOG_RESPONSE_ENABLED": copies, "GUNICORN_CMD_ARGS": "--threads 4",
    }  # fmt: skip
    body = {"input_data": ["the sky is"], "params": {"max_new_tokens": 400, "ignore_eos": True, "stream": True}}
    with Server(tmp_path / "log", environment=insights) as server:
        server.wait_until_healthy()
        with server.stream(body, x_ms_client_request_id="streamed") as stream:
            next(iter(stream))
            assert bool(server.request_records("streamed")) == held_back


def test_a_request_is_one_line_without_its_words(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    with scoring(loaded) as scorer, caplog.at_level(logging.INFO, "llava_serving.service.request_log"):
        score(scorer, "a secret", PICTURE, max_new_tokens=3, n=2, ignore_eos=True)
        score(scorer, "a secret", temperature=-1)
        scorer.score(HttpRequest("POST", {"x-ms-client-request-id": "mine-1"}, io.BytesIO(b'{"input_data": "secret"}')))
    answered, refused, unread = (json.loads(line) for line in caplog.messages)
    assert answered | {"queue_ms": 0, "ttft_ms": 0, "total_ms": 0, "prompt_tokens": 0, "cached_tokens": 0} == {
        "request_id": "", "status": 200, "code": None, "form": "prompts", "stream": False, "rows": 1, "sequences": 2,
        "images": 1, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 6,
        "finish_reasons": ["length", "length"], "queue_ms": 0, "ttft_ms": 0, "total_ms": 0,
    }  # fmt: skip
    assert answered["prompt_tokens"] > loaded.tokenizer.image.count
    assert 0 < answered["ttft_ms"] <= answered["total_ms"]
    assert (refused["status"], refused["code"], refused["completion_tokens"]) == (400, "invalid_parameter", 0)
    assert (unread["status"], unread["request_id"], unread["form"]) == (400, "mine-1", None)
    assert "secret" not in caplog.text
    assert PICTURE[:20] not in caplog.text


@given(sent=st.text())
def test_a_request_id_is_a_short_word(sent: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,40}", RequestRecord.begin({"x-request-id": sent}).request_id)
