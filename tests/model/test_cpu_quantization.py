"""The service with weights in 8 bits, 4 bits and bfloat16 on a CPU, with and without a C compiler."""

from pathlib import Path

import pytest
import torch
from checkpoints import Shape, write_parts
from demo_answers import assert_demo_answers
from server import Server

from llava_serving.errors import StartupError
from llava_serving.model.packed_linear import PackedLinear
from llava_serving.settings import Settings
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import PartsFolder

SETTINGS = [
    {"LLAVA_QUANTIZATION": "int8"}, {"LLAVA_QUANTIZATION": "int4"}, {"LLAVA_DTYPE": "bfloat16"},
    {"LLAVA_QUANTIZATION": "int8", "LLAVA_DTYPE": "float32"},
]  # fmt: skip


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_integers_on_several_gpus_are_refused(quantization: str) -> None:
    with pytest.raises(StartupError, match="with one device, not with LLAVA_DEVICE=balanced"):
        Settings.from_environment({"LLAVA_QUANTIZATION": quantization, "LLAVA_DEVICE": "balanced"})


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_language_model_the_tower_and_the_head_are_packed(tmp_path: Path, quantization: str) -> None:
    parts = PartsFolder(write_parts(tmp_path, Shape()))
    original = load_model(parts, "cpu", "float32")
    packed = load_model(parts, "cpu", "auto", quantization=quantization)
    assert packed.model.dtype == torch.bfloat16
    assert packed.num_parameters == original.num_parameters
    names = {name for name, module in packed.model.named_modules() if isinstance(module, PackedLinear)}
    linears = {name for name, module in original.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert names == {name for name in linears if "multi_modal_projector" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_the_service_answers_as_in_float32(tmp_path: Path, settings: dict[str, str]) -> None:
    with Server(log=tmp_path / "log", environment={"GUNICORN_CMD_ARGS": "--threads 96", **settings}) as server:
        server.wait_until_healthy()
        assert_demo_answers(server)
        assert "CPU kernels: AVX" in server.log


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, *SETTINGS[:2]], ids=lambda settings: "-".join(settings.values()) or "none")
def test_without_a_compiler_the_service_answers_and_says_why_it_is_slower(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    environment = {"GUNICORN_CMD_ARGS": "--threads 96", "PATH": "/nonexistent", "CC": "", **settings}
    with Server(log=tmp_path / "log", environment=environment) as server:
        server.wait_until_healthy()
        assert_demo_answers(server)
        assert "CPU kernels: torch's operators, slower: no C compiler is on the PATH" in server.log
