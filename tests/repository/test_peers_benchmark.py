"""benchmarks/peers.py as a process: this service and transformers with a toy checkpoint, and a server that cannot
start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLERS, TOKENS = (1, 3), 5

pytestmark = pytest.mark.slow


def python(*command: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, *map(str, command)]
    run = subprocess.run(
        words, cwd=ROOT, env=environment | {"PYTHONPATH": "src"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def result_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    python(
        "benchmarks/peers.py", "--small", "--cache", folder, "--peers", "transformers bf16", "--ours",
        "bfloat16:LLAVA_DTYPE=bfloat16", "wrong:LLAVA_DTYPE=float1", "--callers", *CALLERS, "--tokens", TOKENS,
        "--image-size", 40, "--rounds", 1, "--output", folder / "result.json",
    )  # fmt: skip
    return folder / "result.json"


@pytest.fixture(scope="module")
def result(result_file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(result_file.read_text())
    return content


def test_every_caller_gets_all_tokens_from_each_engine(result: dict[str, Any]) -> None:
    lengths = {
        (row["engine"], row["callers"]): [request["output_tokens"] for request in row["requests"]]
        for row in result["bursts"]
    }
    engines = ("here bfloat16", "transformers bf16")
    assert lengths == {(engine, callers): [TOKENS] * callers for engine in engines for callers in CALLERS}


def test_an_adapter_sends_each_token_on_its_own(result: dict[str, Any]) -> None:
    """This service may send several tokens of so small a model in one event."""
    rows = [row for row in result["bursts"] if row["engine"] == "transformers bf16"]
    assert {len(request["inter_token"]) for row in rows for request in row["requests"]} == {TOKENS - 1}


def test_a_first_token_comes_before_the_end_of_the_answer(result: dict[str, Any]) -> None:
    assert all(0 < request["ttft"] <= request["e2e"] for row in result["bursts"] for request in row["requests"])


def test_all_engines_get_prompts_of_the_same_length(result: dict[str, Any]) -> None:
    """One token may differ, because the service encodes the text after a picture as a new text."""
    first = {row["engine"]: row["requests"][0]["prompt_tokens"] for row in result["bursts"] if row["callers"] == 1}
    assert abs(first["here bfloat16"] - first["transformers bf16"]) <= 1


def test_the_page_shows_the_figures_and_why_a_server_did_not_start(result_file: Path) -> None:
    python("benchmarks/peers_report.py", result_file)
    page = result_file.with_suffix(".md").read_text()
    assert "| transformers bf16 |" in page
    assert "| here bfloat16 |" in page
    assert "LLAVA_DTYPE" in page.split("## What did not run")[1]
    assert result_file.with_suffix(".svg").read_text().startswith("<svg")
