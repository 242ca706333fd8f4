"""Seconds to load a model, which include packing, in turns. One load before the first round reads the files into
the page cache."""

import argparse
import time
from typing import Any

from llava_serving.weights.model_folder import MergedFolder

from .setting import load

SETTINGS = ("none/float32", "none/bfloat16", "int8/float32", "int4/float32")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = MergedFolder(arguments.model_dir)
    load(folder, SETTINGS[0])
    seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(arguments.rounds):
        for setting, times in seconds.items():
            started = time.monotonic()
            load(folder, setting)
            times.append(round(time.monotonic() - started, 2))
    return {"seconds": seconds}
