"""Twice the load that the service takes: python benchmarks/soak.py --seconds 300 --output results/soak.json

Clients send requests to the demo model without pause, and retry after 429. The requests vary: streams and complete
answers, own and shared images, several sequences, seeds, stop strings, short deadlines, and clients that disconnect in
the middle. Checks that every request gets one answer or one 429, that the probe answers within a second, that memory
does not grow, and that at the end no sequence and no KV cache block is in use.
"""

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from servers import Server, free_port, machine, resident_mib

from llava_serving.bench.workload import random_image

MAX_NUM_SEQS, MAX_QUEUED_SEQS = 8, 8
CLIENTS = 2 * (MAX_NUM_SEQS + MAX_QUEUED_SEQS)
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
COUNTERS = ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total", "vllm:generation_tokens_total")
WARM_UP = 0.2  # the share of the time before memory is compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    metrics_port = free_port()
    environment = {
        "LLAVA_MAX_NUM_SEQS": str(MAX_NUM_SEQS), "LLAVA_MAX_QUEUED_SEQS": str(MAX_QUEUED_SEQS),
        "LLAVA_MAX_SEQUENCES": "4", "LLAVA_METRICS_PORT": str(metrics_port), "LLAVA_KV_CACHE_GIB": "0.005",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Server("engine", environment, Path(folder) / "log") as server:
        soak = Soak(server, arguments.seconds)
        soak.run()
        time.sleep(1)
        metrics = read_metrics(metrics_port)
        tracebacks = (Path(folder) / "log").read_text().count("Traceback")
    results = soak.results() | {"left": metrics, "tracebacks": tracebacks}
    content = {"machine": machine(), "command": sys.argv, "environment": environment, "callers": CLIENTS} | results
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(results))
    early, late = results["rss_mib_after_warm_up"], results["rss_mib_at_the_end"]
    failures = [
        *(f"{name} is {value}" for name, value in metrics.items() if value and name in GAUGES),
        *([f"unexpected outcomes: {soak.unexpected}"] if soak.unexpected else []),
        *([f"the probe took {results['probe_seconds_max']:.2f} s"] if results["probe_seconds_max"] >= 1 else []),
        *([f"memory grew from {early:.0f} to {late:.0f} MiB"] if late > early * 1.1 else []),
        *([f"{tracebacks} tracebacks in the log"] if tracebacks else []),
    ]
    print("\n".join(failures) or "all checks passed")
    return 1 if failures else 0


class Soak:
    """Clients that send requests until the time is over, a probe, and the memory of the server."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self._until = time.monotonic() + seconds
        self._outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self._probes: list[float] = []
        self._rss: list[tuple[float, float]] = []  # (seconds since start, MiB)
        self._started = time.monotonic()

    def run(self) -> None:
        threads = [threading.Thread(target=self._send_requests, args=(seed,)) for seed in range(CLIENTS)]
        threads += [threading.Thread(target=self._probe), threading.Thread(target=self._measure_memory)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def results(self) -> dict[str, Any]:
        total = self._rss[-1][0]
        early = [mib for seconds, mib in self._rss if WARM_UP * total <= seconds <= 2 * WARM_UP * total]
        late = [mib for seconds, mib in self._rss if seconds >= (1 - WARM_UP) * total]
        return {
            "seconds": time.monotonic() - self._started,
            "requests": sum(self._outcomes.values()),
            "outcomes": dict(self._outcomes),
            "probes": len(self._probes),
            "probe_seconds_median": sorted(self._probes)[len(self._probes) // 2],
            "probe_seconds_max": max(self._probes),
            "rss_mib_after_warm_up": sum(early) / len(early),
            "rss_mib_at_the_end": sum(late) / len(late),
        }

    def _send_requests(self, seed: int) -> None:
        rng = random.Random(seed)
        shared_image = random_image(random.Random("shared"), 64)
        while time.monotonic() < self._until:
            outcome = self._send(rng, shared_image)
            self._outcomes[outcome] += 1
            if outcome == "429":
                time.sleep(rng.uniform(0.05, 0.3))
            elif outcome not in ("200", "left", "504"):
                self.unexpected[outcome] += 1

    def _send(self, rng: random.Random, shared_image: str) -> str:
        """Sends a request and returns its outcome: a status, "left" if the client disconnects, or an error."""
        stream, disconnects = rng.random() < 0.5, rng.random() < 0.1
        body = request(rng, shared_image, stream)
        headers = {"Content-Type": "application/json"}
        if rng.random() < 0.05:
            headers["x-ms-request-timeout-ms"] = str(rng.randint(50, 2000))
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=120)
        try:
            connection.request("POST", "/score", json.dumps(body).encode(), headers)
            if disconnects and not stream:
                time.sleep(rng.uniform(0, 0.1))
                return "left"
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return str(response.status)
            if disconnects:
                response.read(10)
                return "left"
            answer = response.read()
            return "200" if not stream or answer.endswith(b"data: [DONE]\n\n") else "cut stream"
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()

    def _probe(self) -> None:
        while time.monotonic() < self._until:
            started = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
            connection.request("GET", "/")
            if connection.getresponse().status != 200:
                self.unexpected["probe"] += 1
            connection.close()
            self._probes.append(time.monotonic() - started)
            time.sleep(0.25)

    def _measure_memory(self) -> None:
        while time.monotonic() < self._until:
            self._rss.append((time.monotonic() - self._started, resident_mib(self._server.process.pid)))
            time.sleep(1)


def request(rng: random.Random, shared_image: str, stream: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = {"stream": stream, "max_new_tokens": rng.randint(1, 120), "ignore_eos": True}
    if rng.random() < 0.5:
        parameters |= {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(1000), "n": rng.randint(1, 3)}
    if rng.random() < 0.2:
        parameters["stop"] = ["a", "circle"]
    image = rng.choice([None, shared_image, random_image(rng, 64)])
    text = rng.choice(["What is in the image?", "The sky is blue and " * rng.randint(1, 10)])
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


def read_metrics(port: int) -> dict[str, float]:
    """Returns the values of GAUGES and COUNTERS from the metrics port."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    values = {}
    for line in connection.getresponse().read().decode().splitlines():
        name = line.partition("{")[0]
        if name in GAUGES + COUNTERS:
            values[name] = float(line.split()[-1])
    return values


if __name__ == "__main__":
    sys.exit(main())
