"""The queries of docs/monitoring.md and of the workbook, run on the telemetry that the real service sends."""

import json
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ingestion import TABLES, Ingestion, ingestion
from server import ROOT, Server

PAGE = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
WORKBOOK = json.loads((ROOT / "scripts" / "workbook.json").read_text("utf-8"))
QUERIES = dict(re.findall(r"^### ([^\n]*)\n(?:(?!^#).)*?```kusto\n(.*?)\n```", PAGE, re.M | re.S))
REQUEST_LOG = "request_log.py"
METRIC = re.compile(r"\b(?:vllm|llava):\w+")
PRICE = 2.0
DEADLINE_SECONDS = 240  # of a busy machine; it takes 20 on an idle one
pytestmark = pytest.mark.slow


@dataclass
class Observed:
    """What the callers of a service received, its page for Prometheus, and the telemetry that it sent."""

    statuses: Counter[int]
    usages: dict[str, dict[str, int]]  # by the id that the caller gave its request
    prometheus: dict[str, float]
    sent: Ingestion
    idle_export: list[str]  # the metrics of an export while no request came


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Runs a service with room for three sequences, asks it, and waits until its telemetry has arrived."""
    with ingestion() as sent:
        environment = sent.environment | {
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
            "LLAVA_MAX_NUM_SEQS": "2",
            "LLAVA_MAX_QUEUED_SEQS": "1",
            "LLAVA_MAX_SEQUENCES": "3",
            "LLAVA_METRICS_PORT": str(free_port()),
        }
        with Server(tmp_path_factory.mktemp("monitored") / "log", environment=environment) as server:
            server.wait_until_healthy()
            usages = {f"caller-{n}": chat(server, f"caller-{n}") for n in range(3)}
            statuses = Counter([200] * len(usages))
            statuses[server.score({}).status] += 1
            while not statuses[429]:
                statuses += burst(server)
            page = prometheus(int(environment["LLAVA_METRICS_PORT"]))
            wait_until(lambda: has_arrived(sent, statuses.total(), page))
            rows = sent.metrics()
            wait_until(lambda: len(sent.metrics()) > len(rows))
            idle_export = [row[1] for row in sent.metrics()[len(rows) :]]
        yield Observed(statuses, usages, page, sent, idle_export)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def chat(server: Server, request_id: str) -> dict[str, int]:
    """Asks a question, and returns the usage that the answer states."""
    body = {"model": "llava", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    usage: dict[str, int] = server.score(body, x_ms_client_request_id=request_id).json["usage"]
    return usage


def burst(server: Server) -> Counter[int]:
    """Sends requests at the same time, of which one fills the service. Returns their statuses."""
    body = {"input_data": {"input_string": ["the meaning of life is"] * 3}}
    statuses: list[int] = []
    callers = [threading.Thread(target=lambda: statuses.append(server.score(body).status)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return Counter(statuses)


def prometheus(port: int) -> dict[str, float]:
    """Returns the values of the page for Prometheus, summed over labels, without the buckets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = re.findall(r"^(\S+?)\{(.*)\} (\S+)$", response.read().decode(), re.M)
    values: dict[str, float] = {}
    for name, _, value in lines:
        values[name] = values.get(name, 0) + float(value)
    return values


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the telemetry did not arrive"
        time.sleep(0.1)


def has_arrived(sent: Ingestion, num_requests: int, page: dict[str, float]) -> bool:
    """Whether every request is in the log that was sent, and what Prometheus counts of them in the metrics."""
    counted = [
        sum(row[3] for row in sent.metrics() if row[1] == name)
        for name in ("llava:request_errors", "vllm:request_generation_tokens", "vllm:generation_tokens")
    ]
    expected = [
        page[name]
        for name in ("llava:request_errors_total", "vllm:request_generation_tokens_sum", "vllm:generation_tokens_total")
    ]
    return len(request_log(sent)) == num_requests and counted == expected


def request_log(sent: Ingestion) -> list[dict[str, Any]]:
    """Returns the lines of the request log among the traces, by the file that wrote them."""
    return [json.loads(row[1]) for row in sent.traces() if json.loads(row[3])["code.file.path"].endswith(REQUEST_LOG)]


@pytest.fixture(scope="module")
def rows(observed: Observed) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows that each query of the page gives."""
    kql = pytest.importorskip("duckdb_kql")
    connection = kql.connect()
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({columns})")
    connection.executemany("INSERT INTO customMetrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", observed.sent.metrics())
    connection.executemany("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?)", observed.sent.traces())
    results = {}
    for title, query in QUERIES.items():
        result = kql.query(connection, query.replace("PRICE", str(PRICE)))
        results[title] = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    return results


def test_the_workbook_shows_the_queries_of_the_page() -> None:
    items = [item["content"] for item in WORKBOOK["variables"]["workbook"]["items"] if item["type"] == 3]
    shown = {item["title"]: item["query"].replace("{Price}", "PRICE") for item in items}
    assert shown == QUERIES
    (parameters,) = [item for item in WORKBOOK["variables"]["workbook"]["items"] if item["type"] == 9]
    names = {parameter["name"] for parameter in parameters["content"]["parameters"]}
    assert {item["timeContextFromParameter"] for item in items} | {"Price"} == names


def test_no_string_of_the_workbook_is_an_expression_of_the_template_by_accident() -> None:
    strings = re.findall(r'"(\[.*?\])"', json.dumps(WORKBOOK))
    assert all(re.match(r"\[(parameters|string|resourceGroup)\(", string) for string in strings)


def test_every_metric_and_field_on_the_page_exists_in_the_service(observed: Observed) -> None:
    sent = {row[1] for row in observed.sent.metrics()}
    assert set(METRIC.findall("".join(QUERIES.values()))) <= sent
    of_prometheus = PAGE.split("\n## Prometheus\n")[1].split("\n## ")[0]
    buckets = {f"{name.removesuffix('_sum')}_bucket" for name in observed.prometheus if name.endswith("_sum")}
    assert set(METRIC.findall(of_prometheus)) <= {*observed.prometheus, *buckets}
    assert set(METRIC.findall(PAGE.replace(of_prometheus, ""))) <= sent
    fields = set(re.findall(r"\brequest\.(\w+)|\(message\)\.(\w+)", "".join(QUERIES.values())))
    assert {field for pair in fields for field in pair if field} <= request_log(observed.sent)[0].keys()
    labels = {label for row in observed.sent.metrics() for label in json.loads(row[7])}
    assert set(re.findall(r"customDimensions\.(\w+)", "".join(QUERIES.values()))) <= labels


def test_the_queries_find_the_tokens_that_prometheus_counts(
    rows: dict[str, list[dict[str, Any]]], observed: Observed
) -> None:
    rates = {row["name"]: row["tokens_per_second"] * 300 for row in rows["Tokens per second"]}
    for name in ("vllm:generation_tokens", "vllm:prompt_tokens"):
        assert rates[name] == pytest.approx(observed.prometheus[f"{name}_total"])
    for row in rows["Mean times"]:
        name = row["name"]
        mean = observed.prometheus[f"{name}_sum"] / observed.prometheus[f"{name}_count"]
        assert row["seconds"] == pytest.approx(mean)
    for row in rows["Longest times"]:
        assert row["sequences"] == observed.prometheus[f"{row['name']}_count"]
        assert row["mean"] <= row["longest"]
    (batch,) = rows["Mean batch size"]
    steps, sequences = (observed.prometheus[f"llava:engine_{name}_total"] for name in ("steps", "step_sequences"))
    assert batch["batch_size"] == pytest.approx(sequences / steps)
    (rate,) = rows["Cache hit rates"]
    hits, queries = (observed.prometheus[f"vllm:prefix_cache_{name}_total"] for name in ("hits", "queries"))
    assert rate["prefix_hit_rate"] == pytest.approx(hits / queries)


def test_the_queries_find_the_statuses_that_the_callers_received(
    rows: dict[str, list[dict[str, Any]]], observed: Observed
) -> None:
    errors = {row["error"]: row["requests"] for row in rows["Refusals and errors"]}
    assert errors == {"429 overloaded": observed.statuses[429], "400 invalid_request": observed.statuses[400]}
    (share,) = rows["Share of refused and failed requests"]
    assert share["refused_percent"] == pytest.approx(100 * observed.statuses[429] / observed.statuses.total())
    assert share["failed_percent"] == 0


def test_the_slowest_requests_are_found_by_the_id_of_the_caller(
    rows: dict[str, list[dict[str, Any]]], observed: Observed
) -> None:
    found = {row["request_id"]: row for row in rows["The slowest requests"]}
    for request_id, usage in observed.usages.items():
        assert {
            name: found[request_id][name] for name in ("prompt_tokens", "completion_tokens")
        }.items() <= usage.items()
    times = [row["total_ms"] for row in rows["The slowest requests"]]
    assert times == sorted(times, reverse=True)
    (percentiles,) = rows["Percentiles of the first token"]
    answered = [line["ttft_ms"] for line in request_log(observed.sent) if line["status"] == 200]
    assert percentiles["ttft_p50"] in answered
    assert percentiles["ttft_p95"] == max(answered)


def test_the_cost_counts_a_minute_for_each_export_of_an_instance(
    rows: dict[str, list[dict[str, Any]]], observed: Observed
) -> None:
    exports = sum(row[1] == "vllm:num_requests_running" for row in observed.sent.metrics())
    (cost,) = rows["Cost per million tokens"]
    generated = observed.prometheus["vllm:generation_tokens_total"]
    assert cost["cost"] == pytest.approx(exports / 60 * PRICE)
    assert cost["cost_per_million_generated"] == pytest.approx(exports / 60 * PRICE / generated * 1e6)


def test_gauges_have_a_row_for_each_instance_or_name(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert {row["name"] for row in rows["Running and waiting sequences"]} == {
        "vllm:num_requests_running", "vllm:num_requests_waiting",
    }  # fmt: skip
    (usage,) = rows["KV cache usage"]
    assert 0 <= usage["kv_cache_usage"] <= 1


def test_a_test_looks_at_every_query(rows: dict[str, list[dict[str, Any]]]) -> None:
    source = Path(__file__).read_text("utf-8")
    assert len(QUERIES) == 12
    assert [title for title in rows if f'rows["{title}"]' not in source] == []


def test_the_table_requests_is_as_wrong_as_the_page_says(observed: Observed) -> None:
    requests = [data for data, _ in observed.sent.of_kind("RequestData")]
    assert {(data["success"], data["responseCode"]) for data in requests} == {(True, "0")}
    assert Counter(int(data["properties"]["resultCode"]) for data in requests) == observed.statuses


def test_the_rows_of_an_idle_minute_are_as_many_as_the_page_says(observed: Observed) -> None:
    (stated,) = re.findall(r"sends (\d+) rows of metrics a minute without requests", PAGE)
    assert len(observed.idle_export) == len(set(observed.idle_export)) == int(stated)
