"""Compares this service with its peers on a CPU: python benchmarks/peers.py --output benchmarks/results/peers_cpu.json

The peers are OpenVINO GenAI, transformers' `generate`, vLLM's CPU build and llama.cpp. The first run installs each in
its own virtual environment and converts the checkpoint for it, under --cache. Then every round starts each engine in
turn, alone on the machine, and sends it bursts of requests: 1, 2, 4, 8 and 16 at once, each with another picture. All
are asked over HTTP by the same client, which takes the time of every token. Bandwidth and products are measured in
each round. `peers_report.py` renders the page from the results.
"""

import sys

from peers.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
