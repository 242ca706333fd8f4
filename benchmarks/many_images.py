"""Host memory over ten thousand distinct pictures: python benchmarks/many_images.py --output results/many_images.json

Sixteen callers ask the demo model one token about pictures that were never seen before, and the resident memory of the
server is read after every thousand.
"""

import argparse
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servers import Server, machine

from llava_serving.bench.caller import Target, send
from llava_serving.bench.workload import Question, bodies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rss: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Server("engine", {}, Path(folder) / "log") as server:
        target = Target(f"{server.url}/score", "score", False)
        question = Question("image", arguments.image_size, (1, 1))
        with ThreadPoolExecutor(16) as callers:
            for thousand in range(arguments.images // 1000):
                whole = bodies(target, "", question, 1000, random.Random(thousand).randrange(2**32))
                outcomes = list(callers.map(lambda body: send(target, body), whole))
                assert all(outcome.error is None for outcome in outcomes)
                assert sum(outcome.output_tokens for outcome in outcomes) == 1000
                rss.append(resident_mib(server.process.pid))
                print(f"{1000 * (thousand + 1)} pictures: {rss[-1]:.0f} MiB", flush=True)
    told = {"machine": machine(), "command": sys.argv, "images": arguments.images, "rss_mib_after_each_1000": rss}
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")


def resident_mib(pid: int) -> float:
    """Of the server's processes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = [Path(f"/proc/{child}/status").read_text() for child in children]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024


if __name__ == "__main__":
    main()
