"""A stand-in for Application Insights: what Azure's exporters send arrives here, and becomes rows of its tables.

The columns are those of Microsoft's reference of the tables customMetrics and traces. All rows have one time, so that a
query has one row for each series.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "00000000-0000-4000-8000-000000000000"
TIME = "2026-01-01 12:00:00"
TABLES = {
    "customMetrics": "timestamp TIMESTAMP, name VARCHAR, value DOUBLE, valueSum DOUBLE, valueCount INTEGER, "
    "valueMin DOUBLE, valueMax DOUBLE, customDimensions JSON, cloud_RoleName VARCHAR, cloud_RoleInstance VARCHAR",
    "traces": "timestamp TIMESTAMP, message VARCHAR, severityLevel INTEGER, customDimensions JSON, "
    "cloud_RoleName VARCHAR, cloud_RoleInstance VARCHAR",
}


class Ingestion:
    """What has arrived: `items` are the telemetry items as sent. `environment` makes a service send them here."""

    def __init__(self, port: int) -> None:
        self.items: list[dict[str, Any]] = []
        self.environment = {
            "AML_APP_INSIGHTS_ENABLED": "true",
            "AML_APP_INSIGHTS_KEY": KEY,
            "APPLICATIONINSIGHTS_CONNECTION_STRING": f"InstrumentationKey={KEY};IngestionEndpoint=http://127.0.0.1:{port}",
            "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",  # the exporter's telemetry about itself
        }

    def of_kind(self, kind: str) -> list[tuple[dict[str, Any], dict[str, str]]]:
        """Returns data and tags of the items of a kind, for example MetricData."""
        return [(i["data"]["baseData"], i["tags"]) for i in list(self.items) if i["data"]["baseType"] == kind]

    def metrics(self) -> list[tuple[Any, ...]]:
        """Returns the rows of customMetrics."""
        rows = []
        for data, tags in self.of_kind("MetricData"):
            (metric,) = data["metrics"]
            value, count = metric["value"], metric.get("count", 1)
            rows.append(
                (TIME, metric["name"], value, value, count, metric.get("min"), metric.get("max"), *end(data, tags))
            )
        return rows

    def traces(self) -> list[tuple[Any, ...]]:
        """Returns the rows of traces."""
        messages = self.of_kind("MessageData")
        return [(TIME, data["message"], int(data["severityLevel"]), *end(data, tags)) for data, tags in messages]


def end(data: dict[str, Any], tags: dict[str, str]) -> tuple[str, str, str]:
    """Returns the columns that end a row of either table."""
    return json.dumps(data.get("properties", {})), tags["ai.cloud.role"], tags["ai.cloud.roleInstance"]


@contextmanager
def ingestion() -> Iterator[Ingestion]:
    """Receives telemetry until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    received = Ingestion(server.server_address[1])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            items = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            received.items += items
            answer = json.dumps({"itemsReceived": len(items), "itemsAccepted": len(items), "errors": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server.RequestHandlerClass = Handler
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
