"""Twice the load that fits, for minutes: python benchmarks/soak.py --seconds 300 --output results/soak.json

Callers of every kind (streaming or not, with pictures of their own or shared, several sequences, seeds, stop strings,
short deadlines, and some who hang up in the middle) ask the demo model without pause; whoever is refused comes again
after a moment. Checked: every request gets one answer or one 429, the probe answers within a second, memory stays
flat, and at the end no sequence and no block is held.
"""

import argparse
import http.client
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from servers import Server, machine

from llava_serving.bench.workload import picture

SEQS, QUEUED = 8, 8
CALLERS = 2 * (SEQS + QUEUED)
WARM_UP = 0.2  # of the time, before memory is compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics_port = free.getsockname()[1]
    environment = {
        "LLAVA_MAX_NUM_SEQS": str(SEQS), "LLAVA_MAX_QUEUED_SEQS": str(QUEUED), "LLAVA_MAX_SEQUENCES": "4",
        "LLAVA_METRICS_PORT": str(metrics_port), "LLAVA_KV_CACHE_GIB": "0.005",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Server("engine", environment, Path(folder) / "log") as server:
        soak = Soak(server, arguments.seconds)
        soak.run()
        time.sleep(1)
        left = gauges(metrics_port)
        crashes = (Path(folder) / "log").read_text().count("Traceback")
    found = soak.told() | {"left": left, "tracebacks": crashes}
    told = {"machine": machine(), "command": sys.argv, "environment": environment, "callers": CALLERS} | found
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(found))
    early, late = found["rss_mib_after_warm_up"], found["rss_mib_at_the_end"]
    wrong = [
        *(f"{name} is {value}" for name, value in left.items() if value and name in GAUGES),
        *([f"unexpected outcomes: {soak.unexpected}"] if soak.unexpected else []),
        *([f"the probe took {found['probe_seconds_max']:.2f} s"] if found["probe_seconds_max"] >= 1 else []),
        *([f"memory grew from {early:.0f} to {late:.0f} MiB"] if late > early * 1.1 else []),
        *([f"{crashes} tracebacks in the log"] if crashes else []),
    ]
    print("\n".join(wrong) or "all as it should be")
    return 1 if wrong else 0


GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
COUNTERS = ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total", "vllm:generation_tokens_total")


class Soak:
    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self._until = time.monotonic() + seconds
        self._outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self._probes: list[float] = []
        self._rss: list[tuple[float, float]] = []  # (seconds since start, MiB)
        self._started = time.monotonic()

    def run(self) -> None:
        threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        threads += [threading.Thread(target=self._probe), threading.Thread(target=self._weigh)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def told(self) -> dict[str, Any]:
        whole = self._rss[-1][0]
        warm = [mib for at, mib in self._rss if WARM_UP * whole <= at <= 2 * WARM_UP * whole]
        late = [mib for at, mib in self._rss if at >= (1 - WARM_UP) * whole]
        return {
            "seconds": time.monotonic() - self._started,
            "requests": sum(self._outcomes.values()),
            "outcomes": dict(self._outcomes),
            "probes": len(self._probes),
            "probe_seconds_median": sorted(self._probes)[len(self._probes) // 2],
            "probe_seconds_max": max(self._probes),
            "rss_mib_after_warm_up": sum(warm) / len(warm),
            "rss_mib_at_the_end": sum(late) / len(late),
        }

    def _call(self, number: int) -> None:
        chosen = random.Random(number)
        shared = picture(random.Random("shared"), 64)
        while time.monotonic() < self._until:
            outcome = self._ask(chosen, shared)
            self._outcomes[outcome] += 1
            if outcome == "429":
                time.sleep(chosen.uniform(0.05, 0.3))
            elif outcome not in ("200", "left", "504"):
                self.unexpected[outcome] += 1

    def _ask(self, chosen: random.Random, shared: str) -> str:
        stream, leaves = chosen.random() < 0.5, chosen.random() < 0.1
        body = request(chosen, shared, stream)
        headers = {"Content-Type": "application/json"}
        if chosen.random() < 0.05:
            headers["x-ms-request-timeout-ms"] = str(chosen.randint(50, 2000))
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=120)
        try:
            connection.request("POST", "/score", json.dumps(body).encode(), headers)
            if leaves and not stream:
                time.sleep(chosen.uniform(0, 0.1))
                return "left"
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return str(response.status)
            if leaves:
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

    def _weigh(self) -> None:
        """The resident memory of the server's processes."""
        children = Path(f"/proc/{self._server.process.pid}/task/{self._server.process.pid}/children").read_text()
        while time.monotonic() < self._until:
            status = [Path(f"/proc/{pid}/status").read_text() for pid in children.split()]
            kib = sum(int(text.split("VmRSS:")[1].split()[0]) for text in status)
            self._rss.append((time.monotonic() - self._started, kib / 1024))
            time.sleep(1)


def request(chosen: random.Random, shared: str, stream: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = {"stream": stream, "max_new_tokens": chosen.randint(1, 120), "ignore_eos": True}
    if chosen.random() < 0.5:
        parameters |= {"temperature": 1.0, "top_p": 0.9, "seed": chosen.randrange(1000), "n": chosen.randint(1, 3)}
    if chosen.random() < 0.2:
        parameters["stop"] = ["a", "circle"]
    image = chosen.choice([None, shared, picture(chosen, 64)])
    text = chosen.choice(["What is in the image?", "The sky is blue and " * chosen.randint(1, 10)])
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


def gauges(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    found = {}
    for line in connection.getresponse().read().decode().splitlines():
        name = line.partition("{")[0]
        if name in GAUGES + COUNTERS:
            found[name] = float(line.split()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
