"""Seconds to load a model, which include packing, in turns: wall time, and the time of all cores.

One load before the first round compiles the kernels and reads the files into the page cache.
"""

import argparse
import time
from typing import Any

from llava_serving.weights.model_folder import MergedFolder

from .setting import load

SETTINGS = ("none/float32", "none/bfloat16", "int8/float32", "int4/float32")
COMPILES = "none/bfloat16"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = MergedFolder(arguments.model_dir)
    load(folder, COMPILES)
    times: dict[str, dict[str, list[float]]] = {setting: {"seconds": [], "core_seconds": []} for setting in SETTINGS}
    for _ in range(arguments.rounds):
        for setting, of_setting in times.items():
            started, cores_started = time.monotonic(), time.process_time()
            load(folder, setting)
            of_setting["core_seconds"].append(round(time.process_time() - cores_started, 2))
            of_setting["seconds"].append(round(time.monotonic() - started, 2))
    return times
