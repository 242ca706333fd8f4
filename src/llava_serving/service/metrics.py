"""The service's metrics, as OpenTelemetry instruments. They have vLLM's names where vLLM has the same metric.

The inference server sends OpenTelemetry's logs and traces to Application Insights, but no metrics. Where Application
Insights is enabled, this module sends the metrics. OpenTelemetry allows no colon in a name, so a View renames each
instrument. With vLLM's names and labels, vLLM's dashboards read the Prometheus endpoint unchanged (vLLM
vllm/v1/metrics/loggers.py).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from wsgiref.types import WSGIApplication

from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from prometheus_client import make_wsgi_app, start_http_server

from ..api.model_info import MODEL_NAME
from ..engine.completion import Completion, FinishReason
from ..engine.stats import Stats

logger = logging.getLogger(__name__)
GAUGES = {
    "vllm:num_requests_running": lambda stats: stats.num_running,
    "vllm:num_requests_waiting": lambda stats: stats.num_waiting,
    "vllm:kv_cache_usage_perc": lambda stats: stats.kv_cache_usage,
}
COUNTERS = {
    "vllm:prompt_tokens": lambda stats: stats.prompt_tokens,
    "vllm:prompt_tokens_cached": lambda stats: stats.cached_prompt_tokens,
    "vllm:generation_tokens": lambda stats: stats.generation_tokens,
    "vllm:prefix_cache_queries": lambda stats: stats.prefix_cache_queries,
    "vllm:prefix_cache_hits": lambda stats: stats.prefix_cache_hits,
    "vllm:mm_cache_queries": lambda stats: stats.mm_cache_queries,
    "vllm:mm_cache_hits": lambda stats: stats.mm_cache_hits,
    "vllm:num_preemptions": lambda stats: stats.preemptions,
    # These two, divided by the steps, are the mean batch size.
    "llava:engine_steps": lambda stats: stats.steps,
    "llava:engine_step_sequences": lambda stats: stats.scheduled_seqs,
    "llava:engine_step_tokens": lambda stats: stats.scheduled_tokens,
}
# vLLM's dashboards select by `model_name` and show no series without it.
LABELS = {"model_name": MODEL_NAME, "engine": "0"}
# vLLM's names (FinishReason in vllm/v1/engine/__init__.py): it aborts a request that is not to go on.
FINISHED_REASONS: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "deadline": "abort",
    "cancelled": "abort",
}
SUCCESS, ERRORS = "vllm:request_success", "llava:request_errors"
LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)  # seconds
TOKEN_TIMES = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)  # seconds
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
HISTOGRAMS: Mapping[str, Sequence[float]] = {
    "vllm:time_to_first_token_seconds": LATENCIES,
    "vllm:request_time_per_output_token_seconds": TOKEN_TIMES,
    "vllm:e2e_request_latency_seconds": LATENCIES,
    "vllm:request_queue_time_seconds": LATENCIES,
    "vllm:request_prompt_tokens": TOKENS,
    "vllm:request_generation_tokens": TOKENS,
}


class Metrics:
    """The instruments of one engine. Exporters read `stats` when they export, so metrics cost a step nothing."""

    def __init__(self, stats: Stats, readers: Iterable[MetricReader] = (), service: str = "ML service") -> None:
        # Application Insights distinguishes roles by the service's name, which the server's traces and logs have too.
        self._provider = MeterProvider(
            metric_readers=list(readers),
            resource=Resource.create({SERVICE_NAME: service}),
            views=_views(),
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("llava_serving")
        for name, read in GAUGES.items():
            meter.create_observable_gauge(_instrument_name(name), [_callback(read, stats)])
        for name, read in COUNTERS.items():
            meter.create_observable_counter(_instrument_name(name), [_callback(read, stats)])
        self._success = meter.create_counter(_instrument_name(SUCCESS))
        self._errors = meter.create_counter(_instrument_name(ERRORS))
        self._histograms = {name: meter.create_histogram(_instrument_name(name)) for name in HISTOGRAMS}

    def count_completion(self, completion: Completion) -> None:
        """Counts a finished sequence of an answer."""
        self._success.add(1, LABELS | {"finished_reason": FINISHED_REASONS[completion.finish_reason]})
        values = {
            "vllm:time_to_first_token_seconds": completion.ttft_seconds,
            "vllm:request_time_per_output_token_seconds": completion.tpot_seconds,
            "vllm:e2e_request_latency_seconds": completion.total_seconds,
            "vllm:request_queue_time_seconds": completion.queue_seconds,
            "vllm:request_prompt_tokens": completion.prompt_tokens,
            "vllm:request_generation_tokens": completion.num_tokens,
        }
        for name, value in values.items():
            if value is not None:
                self._histograms[name].record(value, LABELS)

    def count_error(self, status: int, code: str) -> None:
        """Counts a request that received an error.

        Each pair of status and code is a series for ever, so `code` must be a name from the source of the service, with
        nothing from the request in it.
        """
        self._errors.add(1, LABELS | {"status": status, "code": code})


def metric_readers(environment: Mapping[str, str], host: str, port: int | None) -> list[MetricReader]:
    """Returns the exporters: Application Insights if the server uses it, and Prometheus if `port` is set.

    Prometheus's endpoint listens on `host`, an address or a name of this machine. It has no authentication.

    A failure to set one up is logged. The service serves without metrics, as Azure's server does.
    """
    readers: list[MetricReader] = []
    key = environment.get("AML_APP_INSIGHTS_KEY")
    if key and environment.get("AML_APP_INSIGHTS_ENABLED", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        try:
            exporter = AzureMonitorMetricExporter(connection_string=f"InstrumentationKey={key}")
            readers.append(PeriodicExportingMetricReader(exporter))
        except Exception:
            logger.exception("no metrics to Application Insights")
    if port is not None:
        try:
            server, _ = start_http_server(port, host)
            server.set_app(_in_text_format(make_wsgi_app()))
            readers.append(PrometheusMetricReader(disable_target_info=True))
        except OSError as error:
            logger.error("no metrics on %s:%d: %s", host, port, error)
    return readers


def _in_text_format(page: WSGIApplication) -> WSGIApplication:
    """Returns the page in Prometheus's text format only.

    In the other format, OpenMetrics, prometheus_client 0.26 writes vllm_generation_tokens for vllm:generation_tokens.
    Prometheus 2 asks for OpenMetrics first.
    """
    return lambda environment, start_response: page(environment | {"HTTP_ACCEPT": "text/plain"}, start_response)


def _instrument_name(name: str) -> str:
    return name.replace(":", ".")


def _views() -> list[View]:
    named = [View(instrument_name=_instrument_name(name), name=name) for name in (*GAUGES, *COUNTERS, SUCCESS, ERRORS)]
    return named + [
        View(instrument_name=_instrument_name(name), name=name, aggregation=ExplicitBucketHistogramAggregation(bounds))
        for name, bounds in HISTOGRAMS.items()
    ]


def _callback(read: Callable[[Stats], float], stats: Stats) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(read(stats), LABELS)]
