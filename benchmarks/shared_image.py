"""Ten questions about one image, with caches and without: python benchmarks/shared_image.py --output shared_image.json

The image stands before the question, because prompts can share only their beginning. Each round has a new image and
asks ten questions one after the other. The server counts the prompt tokens that it computes. The client measures the
time to the first token.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from servers import Server, add_server_arguments, bench, machine, server_environment

KINDS = {
    "without": {"LLAVA_PREFIX_CACHING": "false", "LLAVA_IMAGE_CACHE_SIZE": "0"},
    "with": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    add_server_arguments(parser)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    environment = server_environment(arguments)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        with (
            Server("engine", environment | KINDS["without"], logs / "without") as without,
            Server("engine", environment | KINDS["with"], logs / "with") as cached,
        ):
            for index in range(arguments.rounds):
                for kind, server in (("without", without), ("with", cached)):
                    runs.append({"kind": kind, "round": index, "figures": ask_ten_questions(server.url, index)})
    content = {"machine": machine(), "command": sys.argv, "environment": environment, "runs": runs}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    for kind in KINDS:
        figures = [run["figures"] for run in runs if run["kind"] == kind]
        computed = median(f["prompt_tokens"] - f["cached_tokens"] for f in figures)
        ttft = 1e3 * median(f["ttft_seconds"]["p50"] for f in figures)
        print(f"{kind}: {computed:.0f} of {figures[0]['prompt_tokens']} prompt tokens computed, TTFT p50 {ttft:.1f} ms")


def ask_ten_questions(url: str, seed: int) -> dict[str, Any]:
    return bench(
        url, "--workload", "shared-image", "--concurrency", "1", "--num-requests", "10", "--warmup", "0",
        "--output-tokens", "8", "--seed", str(seed),
    )  # fmt: skip


if __name__ == "__main__":
    main()
