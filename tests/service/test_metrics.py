"""The metrics, as a Prometheus scraper and Application Insights receive them."""

import io
import json
import random
import re
import socket
import string
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from scoring import running_scorer

from llava_serving.api.http import HttpRequest
from llava_serving.engine.completion import Completion, FinishReason
from llava_serving.engine.stats import Stats
from llava_serving.service.metrics import HISTOGRAMS, LABELS, Metrics, metric_readers
from llava_serving.weights.loader import LoadedModel

COMPLETION = Completion(
    prompt_index=0,
    index=0,
    text="a",
    token_ids=(5, 6, 7),
    finish_reason="length",
    logprobs=(),
    prompt_tokens=10,
    cached_tokens=4,
    queue_seconds=0.5,
    ttft_seconds=1.0,
    total_seconds=3.0,
)


LOCALHOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def labels_of(reader: InMemoryMetricReader, name: str) -> list[Mapping[str, Any]]:
    """Returns the labels of each series of a metric."""
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = [metric for metric in data.resource_metrics[0].scope_metrics[0].metrics if metric.name == name]
    return [point.attributes for point in metric.data.data_points]


def values(reader: InMemoryMetricReader) -> dict[str, float]:
    """Returns each instrument's value, or the sum of a histogram. Each instrument must have one series."""
    data = reader.get_metrics_data()
    assert data is not None
    by_name = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        by_name[metric.name] = point.sum if hasattr(point, "sum") else point.value
    return by_name


def test_metrics_read_the_engine_s_stats_and_count_completions_and_errors() -> None:
    reader = InMemoryMetricReader()
    stats = Stats()
    metrics = Metrics(stats, [reader])
    stats.num_waiting, stats.kv_cache_usage, stats.prefix_cache_hits = 3, 0.25, 96
    metrics.count_completion(COMPLETION)
    metrics.count_error(429, "overloaded")
    assert values(reader).items() >= {
        "vllm:num_requests_waiting": 3, "vllm:kv_cache_usage_perc": 0.25, "vllm:prefix_cache_hits": 96,
        "vllm:time_to_first_token_seconds": 1.0, "vllm:request_time_per_output_token_seconds": 1.0,
        "vllm:e2e_request_latency_seconds": 3.0, "vllm:request_queue_time_seconds": 0.5,
        "vllm:request_prompt_tokens": 10, "vllm:request_generation_tokens": 3, "vllm:request_success": 1,
        "llava:request_errors": 1,
    }.items()  # fmt: skip


def test_prometheus_page_has_vllm_s_names_and_labels_and_a_taken_port_gives_no_reader() -> None:
    port = free_port()
    (reader,) = metric_readers({}, LOCALHOST, port)
    metrics = Metrics(Stats(num_running=2, generation_tokens=7), [reader])
    metrics.count_completion(COMPLETION)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        page = response.read().decode()
    assert metric_readers({}, LOCALHOST, port) == []  # the port is taken
    reader.shutdown()
    series = dict(re.findall(r"^(\S+) (\S+)$", page, re.M))
    labels = 'engine="0",model_name="llava"'
    assert float(series[f"vllm:num_requests_running{{{labels}}}"]) == 2
    assert float(series[f"vllm:generation_tokens_total{{{labels}}}"]) == 7
    success = f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{LABELS["model_name"]}"}}'
    assert float(series[success]) == 1
    for name in HISTOGRAMS:
        assert float(series[f"{name}_count{{{labels}}}"]) == 1
        assert f'{name}_bucket{{engine="0",le="+Inf",model_name="llava"}}' in series


# What Prometheus 2 and Prometheus 3 ask for.
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
ACCEPTED = (
    f"{OPENMETRICS},application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    f"{OPENMETRICS};escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
)


@pytest.mark.parametrize("accepted", ACCEPTED)
def test_a_prometheus_scraper_gets_vllm_s_names_with_their_colon(accepted: str) -> None:
    port = free_port()
    (reader,) = metric_readers({}, LOCALHOST, port)
    Metrics(Stats(generation_tokens=7), [reader])
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accepted})
    with urllib.request.urlopen(request) as response:
        page = response.read().decode()
    reader.shutdown()
    assert 'vllm:generation_tokens_total{engine="0",model_name="llava"} 7' in page


@pytest.mark.parametrize(
    ("environment", "is_exported"),
    [
        ({}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "true"}, False),
        ({"AML_APP_INSIGHTS_KEY": "0" * 32}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "true", "AML_APP_INSIGHTS_KEY": "no key"}, False),
        ({"AML_APP_INSIGHTS_ENABLED": "True", "AML_APP_INSIGHTS_KEY": "00000000-0000-4000-8000-000000000000"}, True),
    ],
)
def test_metrics_go_to_application_insights_if_it_is_enabled_with_a_valid_key(
    environment: dict[str, str], is_exported: bool
) -> None:
    readers = metric_readers(environment, LOCALHOST, None)
    assert [isinstance(r, PeriodicExportingMetricReader) for r in readers] == [True] * is_exported
    for reader in readers:
        assert isinstance(reader._exporter, AzureMonitorMetricExporter)  # type: ignore[attr-defined]
        reader.shutdown(timeout_millis=1)


def other_address() -> str:
    """Returns an address of this machine that is not of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address besides those of the loopback interface")
        address: str = probe.getsockname()[0]
        return address


@pytest.mark.parametrize(("host", "is_reached"), [(LOCALHOST, False), ("0.0.0.0", True)])
def test_prometheus_endpoint_is_reached_from_other_machines_only_if_its_host_says_so(
    host: str, is_reached: bool
) -> None:
    port = free_port()
    (reader,) = metric_readers({}, host, port)
    for address, is_reached_there in ((LOCALHOST, True), (other_address(), is_reached)):
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as response:
                assert response.status == 200
            assert is_reached_there
        except urllib.error.URLError:
            assert not is_reached_there
    reader.shutdown()


def test_a_host_that_is_not_of_this_machine_gives_no_reader_and_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert metric_readers({}, "192.0.2.1", free_port()) == []
    assert "no metrics on 192.0.2.1:" in caplog.text


def test_finish_reasons_have_vllm_s_names() -> None:
    reader = InMemoryMetricReader()
    metrics = Metrics(Stats(), [reader])
    for reason in get_args(FinishReason):
        metrics.count_completion(replace(COMPLETION, finish_reason=reason))
    reasons = [labels["finished_reason"] for labels in labels_of(reader, "vllm:request_success")]
    assert sorted(reasons) == ["abort", "length", "stop"]


def body_of(**fields: Any) -> dict[str, Any]:
    return {"input_data": {"input_string": ["a"], **fields}}


# A wrong request with a text in it, and the status and code of its error.
WRONG_REQUESTS: list[tuple[Callable[[str], Any], int, str]] = [
    (lambda text: text, 400, "invalid_request"),
    (lambda text: b"{" + text.encode(), 400, "invalid_json"),
    (lambda text: {text: 1}, 400, "invalid_request"),
    (lambda text: body_of(**{text: 1}), 400, "invalid_request"),
    (lambda text: body_of(parameters={text: 1}), 400, "unknown_parameter"),
    (lambda text: body_of(parameters={"temperature": text}), 400, "invalid_parameter"),
    (lambda text: body_of(parameters={"n": 65 + len(text)}), 400, "too_many_sequences"),
    (lambda text: body_of(parameters={"max_new_tokens": 10_000 + len(text)}), 422, "context_length_exceeded"),
    (lambda text: body_of(images=[f"{text}%"]), 400, "invalid_image"),
    (lambda text: body_of(images=[f"https://{text}.example/a.png"]), 400, "image_url_not_allowed"),
    (lambda text: {"messages": [{"role": text, "content": "a"}]}, 400, "invalid_request"),
]


def test_different_texts_in_wrong_requests_add_no_series(loaded: LoadedModel) -> None:
    reader, rng = InMemoryMetricReader(), random.Random(0)
    with running_scorer(loaded, readers=[reader]) as scorer:
        for _ in range(25):
            text = "".join(rng.choices(string.ascii_lowercase, k=12))
            for request, status, code in WRONG_REQUESTS:
                content = request(text)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                headers = {"x-request-id": text, "content-type": "application/json"}
                response = scorer.score(HttpRequest("POST", headers, io.BytesIO(body)))
                assert isinstance(response.body, bytes)
                assert (response.status, json.loads(response.body)["error"]["code"]) == (status, code), content
            scorer.score(HttpRequest(text.upper(), {}, io.BytesIO(b"")))
            scorer.score(HttpRequest("POST", {"content-type": f"text/{text}"}, io.BytesIO(b"{}")))
    expected = {(status, code) for _, status, code in WRONG_REQUESTS}
    expected |= {(405, "method_not_allowed"), (415, "unsupported_media_type")}
    series = labels_of(reader, "llava:request_errors")
    assert {(labels["status"], labels["code"]) for labels in series} == expected
    assert all(labels.keys() == {"status", "code", *LABELS} for labels in series)
    assert len(series) == len(expected)
