"""`llava-serving bench --profile` on the demo model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--num-requests", "3", "--concurrency", "1", "--warmup", "1", "--output-tokens", "6"]
# The command in a process whose parts sleep. The names of the parts are those of the table.
SLOW_PARTS = """
import sys
import time
from llava_serving.engine.scheduler import Scheduler
from llava_serving.engine.sequence_output import SequenceOutput
from llava_serving.model.decoder import Linear
from llava_serving.model.image_encoder import ImageEncoder
from llava_serving.model.lm_head import LMHead
from llava_serving.model.sampling.sampler import Sampler
from llava_serving.tools.cli import main


def slow_down(owner, name, seconds):
    method = getattr(owner, name)

    def slow(*arguments):
        time.sleep(seconds)
        return method(*arguments)

    setattr(owner, name, slow)


slow_down(Scheduler, "schedule", 0.02)
slow_down(SequenceOutput, "push", 0.03)
slow_down(Sampler, "__call__", 0.04)
slow_down(ImageEncoder, "compute", 0.05)
slow_down(LMHead, "__call__", 0.06)
slow_down(Linear, "__call__", 0.005)
sys.exit(main())
"""
pytestmark = pytest.mark.slow


def run_profile(*options: str, code: str = "from llava_serving.tools.cli import main; exit(main())") -> Any:
    command = [sys.executable, "-c", code, "bench", "--profile", *SMALL, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "LLAVA_DEVICE": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def times_of(result: Any) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    times: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])["profile"]
    return times


def test_every_part_of_every_step_is_in_the_table() -> None:
    result = run_profile("--concurrency", "3")
    times = times_of(result)
    assert set(times) == {"decode only", "with prefill"}
    for kind in times.values():
        step = kind["parts"].pop("step")
        assert sum(part["mean_ms"] for part in kind["parts"].values()) == pytest.approx(step["mean_ms"])
        assert sum(part["share"] for part in kind["parts"].values()) == pytest.approx(1)
        parts = [name for name, part in kind["parts"].items() if part["mean_ms"] > 0]
        without_image = set(kind["parts"]) - {"image"}
        assert set(parts) == (set(kind["parts"]) if kind is times["with prefill"] else without_image)
    assert 5 <= times["decode only"]["steps"] <= 15
    assert 1 <= times["with prefill"]["steps"] <= 3
    table = result.stdout.splitlines()
    assert [line[:20].strip() for line in table[4:-2]] == list(times["decode only"]["parts"])
    assert "million parameters in torch.float32 on cpu" in table[0]


def test_the_time_of_a_slow_function_is_in_its_part() -> None:
    times = times_of(run_profile("--workload", "image", code=SLOW_PARTS))
    decode, prefill = (
        {name: part["median_ms"] for name, part in times[kind]["parts"].items()}
        for kind in ("decode only", "with prefill")
    )
    least = {"schedule": 20, "detokenise": 30, "sample": 40, "norms, row-wise": 60, "linear layers": 5}
    assert {part for part, milliseconds in least.items() if decode[part] < milliseconds} == set()
    assert {part for part, milliseconds in least.items() if prefill[part] < milliseconds} == set()
    assert prefill["image"] >= 50
    assert decode["image"] == 0


def test_a_request_that_fails_is_reported() -> None:
    result = run_profile("--api", "openai", "--output-tokens", "100000")
    assert result.returncode == 1
    assert "3 of 3 requests failed" in result.stderr


def test_a_model_that_does_not_load_is_reported(tmp_path: Path) -> None:
    result = run_profile("--model-dir", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("llava-serving: ")
    assert "Traceback" not in result.stderr
