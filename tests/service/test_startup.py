"""The start of the real server process, what stops it, and the self-check that is one of the reasons."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference import tensors
from server import ROOT, Server

from llava_serving.errors import StartupError
from llava_serving.model import gathered_attention
from llava_serving.model.backend import CPU, TORCH, Backend
from llava_serving.model.kv_cache import KVCache
from llava_serving.model.torch_kernels import TorchKernels
from llava_serving.service import startup
from llava_serving.service.engine_builder import build_model_runner
from llava_serving.service.self_check import runner_logits, self_check, sentence_loss
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import DEMO, NEEDS_BASE, PartsFolder


def copy_demo(directory: Path) -> Path:
    """Returns a copy of the demo model's base/, delta/ and vision/."""
    for part in ("base", "delta", "vision"):
        shutil.copytree(DEMO / part, directory / "demo" / part)
    return directory / "demo"


@pytest.fixture
def model_without_base(tmp_path: Path) -> Path:
    """Returns the demo model with a base of almost zero, so that the merged model is the delta alone.

    The base keeps its norms, by which a base and a delta are told apart.
    """
    model_dir = copy_demo(tmp_path)
    for file in (model_dir / "base").glob("*.bin"):
        shard = torch.load(file, weights_only=True)
        small = {name: value if value.ndim == 1 else torch.full_like(value, 1e-6) for name, value in shard.items()}
        torch.save(small, file)
    return model_dir


@pytest.fixture(scope="module")
def demo_in_bfloat16() -> LoadedModel:
    """Returns the demo model in the dtype whose tolerance is the largest."""
    return load_model(PartsFolder(DEMO), "cpu", "bfloat16")


def check(
    loaded: LoadedModel, backend: Backend = CPU, static_decode: bool = False, kv_cache_dtype: str = "auto"
) -> None:
    """Runs the self-check on a new runner."""
    settings = Settings.from_environment({"LLAVA_KV_CACHE_GIB": "0.05", "LLAVA_KV_CACHE_DTYPE": kv_cache_dtype})
    runner = build_model_runner(loaded, settings, backend).runner
    if static_decode:
        runner.enable_static_decode(4)
    self_check(loaded, runner)


def test_the_demo_model_passes_the_self_check_with_each_kind_of_attention(demo_loaded: LoadedModel) -> None:
    check(demo_loaded)
    check(demo_loaded, TORCH)
    check(demo_loaded, TORCH, static_decode=True)
    check(demo_loaded, TORCH, static_decode=True, kv_cache_dtype="int8")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_demo_model_passes_the_self_check_in_each_dtype(dtype: str, quantization: str) -> None:
    loaded = load_model(PartsFolder(DEMO), "cpu", dtype, quantization=quantization)
    check(loaded)
    check(loaded, TORCH)


def skip_the_cache_write_of_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    write = KVCache.write

    def broken(self: KVCache, layer: int, *arguments: torch.Tensor) -> None:
        if layer != 1:
            write(self, layer, *arguments)

    monkeypatch.setattr(KVCache, "write", broken)


def write_to_the_wrong_block(monkeypatch: pytest.MonkeyPatch) -> None:
    write = KVCache.write

    def broken(self: KVCache, layer: int, slots: torch.Tensor, *states: torch.Tensor) -> None:
        write(self, layer, slots % 16, *states)

    monkeypatch.setattr(KVCache, "write", broken)


def drop_the_decode_attention_of_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = gathered_attention.GatheredAttention.__call__

    def broken(self: gathered_attention.GatheredAttention, layer: int, heads: torch.Tensor) -> torch.Tensor:
        attended = attend(self, layer, heads)
        return attended * 0 if layer == 2 and len(heads) == 1 else attended

    monkeypatch.setattr(gathered_attention.GatheredAttention, "__call__", broken)


def decode_at_the_wrong_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a GPU, here by torch: a decode step attends as if it were 8 tokens earlier."""
    decode = TorchKernels.decode

    def broken(
        self: TorchKernels, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        *arguments: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        return decode(self, heads, cos, sin, positions - 8, *arguments)

    monkeypatch.setattr(TorchKernels, "decode", broken)


def lose_the_cached_keys_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a GPU, here by torch: the rotation of a prompt's tokens does not write to the cache."""
    rotate = TorchKernels.rotate_and_cache

    def broken(self: TorchKernels, *arguments: torch.Tensor) -> None:
        *others, cache = arguments
        rotate(self, *others, cache.clone())

    monkeypatch.setattr(TorchKernels, "rotate_and_cache", broken)


@pytest.mark.parametrize(
    ("fault", "backend", "kv_cache_dtype"),
    [
        (skip_the_cache_write_of_one_layer, CPU, "auto"),
        (write_to_the_wrong_block, CPU, "auto"),
        (drop_the_decode_attention_of_one_layer, CPU, "auto"),
        (decode_at_the_wrong_position, TORCH, "auto"),
        (lose_the_cached_keys_of_a_prompt, TORCH, "auto"),
        (decode_at_the_wrong_position, TORCH, "int8"),
        (lose_the_cached_keys_of_a_prompt, TORCH, "int8"),
    ],
)
def test_a_runner_with_a_wrong_attention_or_cache_fails_the_self_check(
    monkeypatch: pytest.MonkeyPatch,
    demo_in_bfloat16: LoadedModel,
    fault: Callable[[pytest.MonkeyPatch], None],
    backend: Backend,
    kv_cache_dtype: str,
) -> None:
    fault(monkeypatch)
    with pytest.raises(StartupError, match=r"the engine's logits on an ordinary sentence are .* off transformers'"):
        check(demo_in_bfloat16, backend, kv_cache_dtype=kv_cache_dtype)


def test_the_self_check_leaves_nothing_that_changes_an_answer(demo_loaded: LoadedModel) -> None:
    """A second check on the same runner sees stale keys and values, as the first sequence after a check does."""
    runner = build_model_runner(demo_loaded, Settings(kv_cache_gib=0.05)).runner
    self_check(demo_loaded, runner)
    first = runner_logits(demo_loaded, runner)
    assert torch.equal(first, runner_logits(demo_loaded, runner))


def test_a_delta_alone_has_the_loss_of_guessing_and_fails_the_self_check(model_without_base: Path) -> None:
    loaded = load_model(PartsFolder(model_without_base), "cpu", "float32")
    loss_of_guessing = float(torch.log(torch.tensor(loaded.vocab_size)))
    assert sentence_loss(loaded) == pytest.approx(loss_of_guessing, rel=0.25)
    with pytest.raises(StartupError, match="delta was merged"):
        check(loaded)


def test_random_weights_and_nan_weights_fail_the_self_check(loaded: LoadedModel) -> None:
    with pytest.raises(StartupError, match="self-check failed"):
        check(loaded)
    with_nan = load_model(PartsFolder(DEMO), "cpu", "float32")
    with_nan.model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(StartupError, match="self-check failed"):
        check(with_nan)


def test_twice_the_base_fails_the_self_check(tmp_path: Path) -> None:
    """With Vicuna as the base, the merged model holds the delta's difference twice. This test doubles the base."""
    model_dir = copy_demo(tmp_path)
    base, delta = tensors(DEMO / "base"), tensors(DEMO / "delta")
    doubled = {name: (2 * value if name in delta else value) for name, value in base.items()}
    for file in (model_dir / "base").glob("*.bin"):
        torch.save({name: doubled[name] for name in torch.load(file, weights_only=True)}, file)
    with pytest.raises(StartupError, match="self-check failed"):
        check(load_model(PartsFolder(model_dir), "cpu", "float32"))


def test_the_log_says_how_long_each_phase_of_the_start_took(demo_server: Server) -> None:
    ready = re.search(r"ready: ([\d.]+) s \((.*)\)", demo_server.log)
    assert ready
    phases = dict(re.findall(r"([a-z-]+(?: [a-z]+)?) ([\d.]+) s", ready[2]))
    assert list(phases) == ["weights", "engine", "self-check", "first answer"]
    assert float(ready[1]) == pytest.approx(sum(map(float, phases.values())), abs=0.25)
    assert re.search(r"read and merged 0\.01 GB in [\d.]+ s, [\d.]+ GB/s", demo_server.log)


def log_of_failed_start(directory: Path, model_dir: Path | None, environment: dict[str, str]) -> str:
    with Server(directory / "log", model_dir, environment) as server:
        status = server.wait_until_ended()
        assert status != 0
        return server.log


def test_the_server_does_not_start_if_the_self_check_fails(tmp_path: Path, model_without_base: Path) -> None:
    assert "self-check failed" in log_of_failed_start(tmp_path, model_without_base, {})


BROKEN_RUNNER = f"""
import itertools
import sys

sys.path.insert(0, {str(ROOT)!r})
import torch
from llava_serving.model.cpu_kernels.attention_kernels import CKernels
from llava_serving.model.kv_cache import KVCache
from score import init, run

write, rotate_and_cache, calls = KVCache.write, CKernels.rotate_and_cache, itertools.count()


def lose_keys(self, *arguments):
    *others, cache = arguments
    rotate_and_cache(self, *others, cache.clone() if next(calls) % 2 else cache)


# With a C compiler the kernels write the cache, and without one torch's operators.
CKernels.rotate_and_cache = lose_keys
KVCache.write = lambda self, layer, *arguments: None if layer == 1 else write(self, layer, *arguments)
"""


def test_the_server_does_not_start_if_its_runner_loses_the_keys_of_some_layers(tmp_path: Path) -> None:
    script = tmp_path / "entry.py"
    script.write_text(BROKEN_RUNNER)
    with Server(tmp_path / "log", entry_script=script) as server:
        assert server.wait_until_ended() != 0
        assert "the engine's logits on an ordinary sentence are" in server.log


def test_the_server_does_not_start_with_an_unknown_setting(tmp_path: Path) -> None:
    log = log_of_failed_start(tmp_path, None, {"LLAVA_DTYP": "float16"})
    assert "LLAVA_DTYP is not a setting" in log


def test_the_server_does_not_start_on_a_delta_without_its_base(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "delta", tmp_path / "model")
    assert NEEDS_BASE in log_of_failed_start(tmp_path, tmp_path / "model", {})


def test_the_server_finds_a_merged_model_two_folders_deep(tmp_path: Path, merged: Path) -> None:
    """Azure mounts a registered model in a folder of its name and its version."""
    shutil.copytree(merged, tmp_path / "models" / "llava" / "1")
    environment = {"LLAVA_SELF_CHECK": "false", "LLAVA_DTYPE": "bfloat16"}
    with Server(tmp_path / "log", tmp_path / "models", environment) as server:
        server.wait_until_healthy()
        response = server.score({"input_data": {"input_string": ["a"], "parameters": {"max_new_tokens": 3}}})
        assert response.status == 200, response.body
        assert json.loads(response.body)[0]["0"].startswith("a")


@pytest.mark.parametrize(
    ("small_model", "omp_num_threads", "cores", "threads"),
    [(10**9, None, 1, 1), (10**9, "4", 1, 2), (1, None, 1, 1), (1, None, 2, 2), (1, None, 64, 2), (1, "4", 1, 2)],
)
def test_a_start_uses_no_more_threads_than_a_quota_allows_unless_the_environment_sets_them(
    parts_dir: Path, monkeypatch: pytest.MonkeyPatch,
    small_model: int, omp_num_threads: str | None, cores: int, threads: int,
) -> None:  # fmt: skip
    before = torch.get_num_threads()
    monkeypatch.setattr(startup, "SMALL_MODEL", small_model)
    monkeypatch.setattr(startup, "available_cores", lambda: cores)
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(parts_dir))
    monkeypatch.setenv("LLAVA_SELF_CHECK", "false")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp_num_threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    torch.set_num_threads(2)
    try:
        startup.load(startup.PhaseTimes())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
