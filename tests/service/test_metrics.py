"""The metrics, as a Prometheus scraper and Application Insights receive them."""

import re
import socket
import urllib.request

import pytest
from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader

from llava_serving.engine.completion import Completion
from llava_serving.engine.stats import Stats
from llava_serving.service.metrics import HISTOGRAMS, LABELS, Metrics, metric_readers

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (reader,) = metric_readers({}, port)
    metrics = Metrics(Stats(num_running=2, generation_tokens=7), [reader])
    metrics.count_completion(COMPLETION)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        page = response.read().decode()
    assert metric_readers({}, port) == []  # the port is taken
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
    readers = metric_readers(environment, None)
    assert [isinstance(r, PeriodicExportingMetricReader) for r in readers] == [True] * is_exported
    for reader in readers:
        assert isinstance(reader._exporter, AzureMonitorMetricExporter)  # type: ignore[attr-defined]
        reader.shutdown(timeout_millis=1)
