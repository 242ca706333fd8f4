"""The service under siege: the process that `llava-serving serve` would start, with a metrics port."""

import http.client
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import free_port

from llava_serving.settings import MIN_DEFAULT_SEQS, Settings
from llava_serving.tools.serve import server_command, server_environment

from .processes import process_tree

METRICS = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total", "vllm:generation_tokens_total",
)  # fmt: skip
END_SECONDS = 90.0


class Service:
    """A server on the demo model. It is healthy when the `with` block begins, and has ended when the block ends."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self.port, self._metrics_port = free_port(), free_port()
        private = {"LLAVA_HOST": "127.0.0.1", "LLAVA_METRICS_PORT": str(self._metrics_port)}
        variables = dict(os.environ) | environment | private
        self.settings = Settings.from_environment(variables)
        self._log = log
        self.command = server_command(self.port, None)
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command, env=server_environment(variables), stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def capacity(self) -> int:
        """The number of sequences that run and wait at a time. Without a GPU the default runs the fewest."""
        return (self.settings.max_num_seqs or MIN_DEFAULT_SEQS) + self.settings.max_queued_seqs

    @property
    def tracebacks(self) -> int:
        """The number of tracebacks in the log."""
        return self._log.read_text("utf-8", "replace").count("Traceback")

    def __enter__(self) -> "Service":
        if not self._becomes_healthy():
            raise SystemExit(f"the service ended before it was healthy:\n{self._log.read_text()[-2000:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.terminate()
            self.wait()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int | None:
        """Returns the exit status, or None if the service does not end in time. Its processes are killed then."""
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in process_tree(self.pid):
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
            return None

    def _becomes_healthy(self) -> bool:
        while self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5):
                    return True
            except OSError:
                time.sleep(0.2)
        return False

    def metrics(self) -> dict[str, float]:
        """Returns METRICS from the metrics port."""
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=30)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return {name: float(line.split()[-1]) for line in lines if (name := line.partition("{")[0]) in METRICS}

    def wait_until_idle(self, seconds: float) -> dict[str, Any]:
        """Returns the gauges when nothing runs or waits and no block is in use, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            gauges = {name: value for name, value in self.metrics().items() if not name.endswith("_total")}
            if not any(gauges.values()) or time.monotonic() > deadline:
                return gauges
            time.sleep(0.2)
