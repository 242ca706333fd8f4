"""Host memory over ten thousand images: python benchmarks/many_images.py --output results/many_images.json

Sixteen clients ask the demo model for one token about images that are all different. The script reads the resident
memory of the server after every thousand images.
"""

import argparse
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servers import Server, machine, resident_mib

from llava_serving.bench.request import Target, send
from llava_serving.bench.workload import Workload, request_bodies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rss: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Server("engine", {}, Path(folder) / "log") as server:
        target = Target(f"{server.url}/score", "score", False)
        workload = Workload("image", arguments.image_size, (1, 1))
        with ThreadPoolExecutor(16) as clients:
            for thousand in range(arguments.images // 1000):
                bodies = request_bodies(target, "", workload, 1000, random.Random(thousand).randrange(2**32))
                outcomes = list(clients.map(lambda body: send(target, body), bodies))
                assert all(outcome.error is None for outcome in outcomes)
                assert sum(outcome.output_tokens for outcome in outcomes) == 1000
                rss.append(resident_mib(server.process.pid))
                print(f"{1000 * (thousand + 1)} images: {rss[-1]:.0f} MiB", flush=True)
    content = {"machine": machine(), "command": sys.argv, "images": arguments.images, "rss_mib_after_each_1000": rss}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
