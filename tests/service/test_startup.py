"""What stops start-up, told by the real server process; and the self-check behind one of the reasons."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import tensors
from server import Server

from llava_serving.errors import StartupError
from llava_serving.export.merged_cache import kept
from llava_serving.service.self_check import self_check, sentence_loss
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_dir import DEMO, MergedCheckpoint, ModelParts

TRIO = ("base", "delta", "vision")


def test_a_merged_model_passes(demo_loaded: LoadedModel) -> None:
    self_check(demo_loaded)


@pytest.fixture
def babbling(tmp_path: Path) -> Path:
    """The demo with its base forgotten: every base tensor next to zero, so that the merge is the delta alone."""
    for part in TRIO:
        shutil.copytree(DEMO / part, tmp_path / "demo" / part)
    for file in (tmp_path / "demo" / "base").glob("*.bin"):
        shard = torch.load(file, weights_only=True)
        torch.save({name: torch.full_like(value, 1e-6) for name, value in shard.items()}, file)
    return tmp_path / "demo"


def test_a_delta_alone_is_at_the_loss_of_guessing_and_refused(babbling: Path) -> None:
    loaded = load_model(ModelParts(babbling), "cpu", "float32")
    chance = float(torch.log(torch.tensor(loaded.vocab_size)))
    assert sentence_loss(loaded) == pytest.approx(chance, rel=0.25)
    with pytest.raises(StartupError, match="delta was merged"):
        self_check(loaded)


def test_a_random_model_and_one_with_a_broken_tensor_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="self-check failed"):
        self_check(loaded)
    broken = load_model(ModelParts(DEMO), "cpu", "float32")
    broken.model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(StartupError, match="self-check failed"):
        self_check(broken)


def test_the_base_applied_twice_is_refused(tmp_path: Path) -> None:
    """As with Vicuna for a base: the delta's difference is counted twice."""
    for part in TRIO:
        shutil.copytree(DEMO / part, tmp_path / "demo" / part)
    base, delta = tensors(DEMO / "base"), tensors(DEMO / "delta")
    twice = {name: (2 * value if name in delta else value) for name, value in base.items()}
    for file in (tmp_path / "demo" / "base").glob("*.bin"):
        torch.save({name: twice[name] for name in torch.load(file, weights_only=True)}, file)
    with pytest.raises(StartupError, match="self-check failed"):
        self_check(load_model(ModelParts(tmp_path / "demo"), "cpu", "float32"))


def test_the_start_says_how_long_each_phase_took(demo_server: Server) -> None:
    ready = re.search(r"ready: ([\d.]+) s \((.*)\)", demo_server.log)
    assert ready
    phases = dict(re.findall(r"([a-z-]+(?: [a-z]+)?) ([\d.]+) s", ready[2]))
    assert list(phases) == ["weights", "self-check", "engine", "first answer"]
    assert float(ready[1]) == pytest.approx(sum(map(float, phases.values())), abs=0.25)
    assert re.search(r"read and merged 0\.01 GB in [\d.]+ s, [\d.]+ GB/s", demo_server.log)


def test_the_merged_model_is_kept_for_the_next_start(tmp_path: Path) -> None:
    environment = {"LLAVA_MERGED_CACHE_DIR": str(tmp_path / "cache")}
    logs, answers = [], []
    for number in range(2):
        with Server(tmp_path / f"log{number}", None, environment) as server:
            server.wait_until_healthy()
            answers.append(json.loads(server.score({"input_data": {"input_string": ["the sky is"]}}).body))
            logs.append(server.log)
    assert "merged into" in logs[0]
    assert "merged into" not in logs[1]
    assert all("merged already" in log for log in logs)
    assert answers[0] == answers[1]


def test_the_cache_tells_weights_apart_and_fails_softly(tmp_path: Path, parts_dir: Path) -> None:
    other = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    first = kept(ModelParts(parts_dir), tmp_path / "cache", "auto")
    assert isinstance(first, MergedCheckpoint)
    assert kept(ModelParts(other), tmp_path / "cache", "auto") == first  # a copy is the same
    file = other / "delta" / "pytorch_model-00001-of-00003.bin"
    shard = torch.load(file, weights_only=True)
    torch.save({name: value + 0.01 for name, value in shard.items()}, file)
    assert kept(ModelParts(other), tmp_path / "cache", "auto") not in (first, ModelParts(other))
    (tmp_path / "file").touch()
    assert kept(ModelParts(parts_dir), tmp_path / "file", "auto") == ModelParts(parts_dir)


CLAIM = """
import sys
from pathlib import Path
from llava_serving.weights.device import claim
print(claim(2, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_each_worker_takes_a_gpu_to_itself(tmp_path: Path) -> None:
    def worker() -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", CLAIM, str(tmp_path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def claimed(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    first, second = worker(), worker()
    assert {claimed(first), claimed(second)} == {"0", "1"}
    third = worker()
    assert "WORKER_COUNT may be at most 2" in third.communicate()[1]
    second.kill()  # and however it ends, its GPU is free again
    second.communicate()
    fourth = worker()
    assert claimed(fourth) in ("0", "1")
    for process in (first, fourth):
        process.communicate()


def refusal(tmp_path: Path, model_dir: Path | None, environment: dict[str, str]) -> str:
    with Server(tmp_path / "log", model_dir, environment) as server:
        assert server.wait_until_ended() != 0
        return server.log


def test_the_server_refuses_a_model_that_babbles(tmp_path: Path, babbling: Path) -> None:
    assert "self-check failed" in refusal(tmp_path, babbling, {})


def test_the_server_refuses_an_unknown_setting(tmp_path: Path) -> None:
    assert "LLAVA_DTYP is not a setting" in refusal(tmp_path, None, {"LLAVA_DTYP": "float16"})


def test_the_server_refuses_a_delta_without_its_base(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "delta", tmp_path / "model")
    assert "babbles" in refusal(tmp_path, tmp_path / "model", {})


def test_the_server_takes_a_merged_model_nested_as_azure_mounts_it(tmp_path: Path, merged: Path) -> None:
    shutil.copytree(merged, tmp_path / "models" / "llava" / "1")
    environment = {"LLAVA_SELF_CHECK": "false", "LLAVA_DTYPE": "bfloat16"}
    with Server(tmp_path / "log", tmp_path / "models", environment) as server:
        server.wait_until_healthy()
        answer = server.score({"input_data": {"input_string": ["a"], "parameters": {"max_new_tokens": 3}}})
        assert answer.status == 200, answer.body
        assert json.loads(answer.body)[0]["0"].startswith("a")
