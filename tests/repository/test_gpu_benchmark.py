"""benchmarks/gpu.py as a process: every phase with a toy model on a CPU, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
PHASES = {"bandwidth", "kernels", "prefill", "decode", "chats", "int8", "launches", "equality"}


def python(*command: object) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gpu") / "small.json"
    run = python("benchmarks/gpu.py", "--small", "--output", output)
    assert run.returncode == 0, run.stdout + run.stderr
    return output


@pytest.fixture(scope="module")
def phases(result: Path) -> dict[str, Any]:
    phases: dict[str, Any] = json.loads(result.read_text())["phases"]
    return phases


def test_every_phase_runs_and_its_results_hold(result: Path, phases: dict[str, Any]) -> None:
    assert json.loads(result.read_text())["small"] is True
    assert phases.keys() == PHASES
    assert all(phase["holds"] and "error" not in phase for phase in phases.values())


def test_a_layer_of_a_decode_step_is_at_most_nine_launches(phases: dict[str, Any]) -> None:
    """One sequence takes 6: 5 of the layer and 2 of split attention, less a norm. Several take two norms more."""
    launches = {(row["path"], row["sequences"]): row["a_layer"] for row in phases["launches"]["rows"]}
    assert launches == {("eager", 1): 6, ("eager", 2): 8, ("eager", 4): 8, ("graph", 1): 6}


def test_a_layer_with_8_bit_weights_has_as_many_launches(phases: dict[str, Any]) -> None:
    launches = {row["sequences"]: row["a_layer"] for row in phases["int8"]["launches"]["rows"]}
    assert launches == {2: 8}


def test_8_bit_weights_take_a_quarter_of_32_bits_and_the_scales(phases: dict[str, Any]) -> None:
    scales, norms, layers = 4 * (4 * 64 + 2 * 96 + 64), 4 * 2 * 64, 2
    weights = 4 * 64 * 64 + 3 * 64 * 96
    assert phases["int8"]["weight_bytes"] == layers * (weights + scales + norms)
    assert phases["int8"]["unpacked_weight_bytes"] == layers * (4 * weights + norms)


def test_the_report_shows_what_was_measured(result: Path, tmp_path: Path) -> None:
    for source in (result, ROOT / "benchmarks" / "results" / "gpu_h100.json"):
        run = python("benchmarks/gpu_report.py", source, "--plot", tmp_path / "plot.svg")
        assert run.returncode == 0, run.stderr
        assert "| captured graph |" in run.stdout
        assert ("8-bit weights" in run.stdout) == (source == result)
        assert (tmp_path / "plot.svg").read_text().startswith("<svg")
