"""A model that is larger than its device's memory: refused before memory is allocated, or when it runs out."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, write_parts
from hypothesis import given
from hypothesis import strategies as st
from server import Server
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_serving.errors import StartupError
from llava_serving.service.engine_builder import build_engine
from llava_serving.settings import Settings
from llava_serving.weights import loader, placement
from llava_serving.weights.device_memory import GIB, GPU, FreeMemory, check_fits, model_bytes
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import DEMO, MergedFolder, PartsFolder
from llava_serving.weights.process_memory import available_memory


def meta_model(hidden: int, intermediate: int, layers: int) -> LlavaForConditionalGeneration:
    """Returns a model without memory that has LLaVA-13b's vision tower and vocabulary."""
    text = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128, "vocab_size": 32003,
    }  # fmt: skip
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig(text_config=text))


@pytest.fixture(scope="module")
def model_13b() -> LlavaForConditionalGeneration:
    return meta_model(5120, 13824, 40)


def test_the_size_of_the_13b_is_that_of_its_weights(model_13b: LlavaForConditionalGeneration) -> None:
    parameters = sum(parameter.numel() for parameter in model_13b.parameters())
    assert model_bytes(model_13b, torch.float16, "none") == 2 * parameters
    packed = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824)  # 4.5 bits each
    assert model_bytes(model_13b, torch.float16, "nf4") == 2 * (parameters - packed) + packed * 9 // 16
    scales = 4 * 40 * (4 * 5120 + 2 * 13824 + 5120)
    assert model_bytes(model_13b, torch.float16, "int8", GPU) == 2 * (parameters - packed) + packed + scales


def test_the_size_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    parts = PartsFolder(write_parts(tmp_path / "parts", Shape(hidden=64, intermediate=128)))
    empty = load_model(parts, "cpu", "float16").model.to("meta")
    for quantization in ("none", "nf4"):
        loaded = load_model(parts, "cpu", "float16", quantization=quantization).model
        stored = [*loaded.parameters(), *(buffer for name, buffer in loaded.named_buffers() if "layers" in name)]
        stored = [value for value in stored if value.numel()]
        language = sum(value.nbytes for value in stored)
        assert model_bytes(empty, torch.float16, quantization) == language


# The setting of LLAVA_DTYPE, the GPUs' free GiB, and the sentence. The 13B has 24.8 GiB in float16, 13.0 GiB in
# int8, and 7.5 GiB in nf4.
REFUSED = [
    (torch.float16, [22], r"takes 24\.\d GiB in float16, and GPU 0 has 22\.0 GiB free", ["int8", "nf4"]),
    (torch.float16, [12], r"takes 24\.\d GiB in float16, and GPU 0 has 12\.0 GiB free", ["nf4"]),
    (torch.float16, [6], r"takes 24\.\d GiB in float16, and GPU 0 has 6\.0 GiB free", []),
    (torch.float16, [15, 15], r"and GPU 0 has 15\.0 GiB free", ["int8", "nf4", "balanced"]),
    (torch.float16, [6, 6, 6], r"and GPU 0 has 6\.0 GiB free", []),
    (torch.float16, [6, 24], r"and GPU 0 has 6\.0 GiB free", ["balanced"]),
    (torch.float32, [40], r"takes 49\.\d GiB in float32, and GPU 0 has 40\.0 GiB free", ["int8", "nf4", "float16"]),
]


@pytest.mark.parametrize(("dtype", "free", "sizes", "ways_out"), REFUSED)
def test_a_model_larger_than_a_gpu_is_refused_with_both_sizes_and_what_fits(
    model_13b: LlavaForConditionalGeneration, dtype: torch.dtype, free: list[int], sizes: str, ways_out: list[str]
) -> None:
    gpus = [FreeMemory(f"GPU {index}", gib * GIB) for index, gib in enumerate(free)]
    with pytest.raises(StartupError) as raised:
        check_fits(model_13b, dtype, "none", gpus[0], gpus)
    message = str(raised.value)
    assert re.search(sizes, message)
    assert "GPU with more memory" in message
    settings = {"int8": "LLAVA_QUANTIZATION=int8", "nf4": "LLAVA_QUANTIZATION=nf4"}
    settings |= {"balanced": "LLAVA_DEVICE=balanced", "float16": "LLAVA_DTYPE=float16"}
    assert [way for way, setting in settings.items() if setting in message] == ways_out


def test_a_model_that_fits_is_not_refused(model_13b: LlavaForConditionalGeneration) -> None:
    check_fits(model_13b, torch.float16, "none", FreeMemory("GPU 0", 25 * GIB), [])
    check_fits(model_13b, torch.float16, "nf4", FreeMemory("GPU 0", 8 * GIB), [])
    with pytest.raises(StartupError, match=r"takes 7\.\d GiB in nf4"):
        check_fits(model_13b, torch.float16, "nf4", FreeMemory("GPU 0", 7 * GIB), [])


@pytest.mark.slow
def test_the_server_refuses_a_model_larger_than_the_memory_with_both_sizes(merged: Path, tmp_path: Path) -> None:
    """The file of the weights is sparse: its terabyte takes no space on the disk."""
    folder = tmp_path / "models" / "llava"
    folder.mkdir(parents=True)
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(merged / name, folder)
    config = stock_config_of_a_giant(merged)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        offsets = [end, end + 2 * parameter.numel()]
        header[name], end = {"dtype": "F16", "shape": list(parameter.shape), "data_offsets": offsets}, offsets[1]
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    with Server(tmp_path / "log", tmp_path / "models", {"LLAVA_DEVICE": "cpu"}) as server:
        assert server.wait_until_ended() != 0
        assert re.search(r"the model takes 1,\d{3}\.\d GiB in float32, and .* has [\d.,]+ GiB available", server.log)
        assert "damaged" not in server.log


def stock_config_of_a_giant(merged: Path) -> LlavaConfig:
    config = LlavaConfig.from_pretrained(merged)
    text = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 100, "num_attention_heads": 128}
    sizes = {"head_dim": 128, "num_key_value_heads": 128}
    return LlavaConfig(**config.to_dict() | {"text_config": config.text_config.to_dict() | text | sizes})


def out_of_gpu_memory(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 136.00 MiB.\nmore lines")


def out_of_host_memory(*arguments: object, **options: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("fault", [out_of_gpu_memory, out_of_host_memory])
@pytest.mark.parametrize("step", ["empty_model", "allocate", "read_chunks"])
def test_memory_that_runs_out_while_loading_is_told_as_such(
    merged: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], step: str
) -> None:
    import llava_serving.weights.merged_checkpoint as merged_checkpoint

    monkeypatch.setattr(merged_checkpoint if step == "empty_model" else placement, step, fault)
    with pytest.raises(StartupError, match="memory ran out while the model was loaded") as raised:
        load_model(MergedFolder(merged), "cpu", "float32")
    assert "damaged" not in str(raised.value)


def test_memory_that_runs_out_while_headers_are_read_is_told_as_such(
    parts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_serving.weights.storage import torch_file

    monkeypatch.setattr(torch_file, "_read_zip", out_of_host_memory)
    with pytest.raises(StartupError, match="memory ran out while the model was loaded"):
        load_model(PartsFolder(parts_dir), "cpu", "float32")


def test_another_error_while_loading_is_not_told_as_memory(parts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loader, "load_weights", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        load_model(PartsFolder(parts_dir), "cpu", "float32")


def test_a_kv_cache_that_memory_cannot_hold_is_told_as_such(demo_loaded: LoadedModel) -> None:
    with pytest.raises(StartupError, match=r"memory ran out while the engine was built.*LLAVA_KV_CACHE_GIB"):
        build_engine(demo_loaded, Settings(kv_cache_gib=2.0**23))


LOAD_WITH_A_LIMIT = """
import resource, sys
from pathlib import Path
from llava_serving.errors import StartupError
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import find_model

load_model(find_model(sys.argv[1]), "cpu", "float32")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load_model(find_model(sys.argv[2]), "cpu", "float32")
except StartupError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounting")
def test_an_allocation_that_the_system_refuses_is_told_as_memory(parts_dir: Path, tmp_path: Path) -> None:
    large = write_parts(tmp_path / "parts", Shape(hidden=1024, intermediate=4096, layers=3, heads=8))
    command = [sys.executable, "-c", LOAD_WITH_A_LIMIT, str(parts_dir), str(large)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "memory ran out while the model was loaded" in run.stdout
    assert "damaged" not in run.stdout


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
V2 = {"proc/self/cgroup": "0::/job\n"}
V1 = {"proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/\n"}
TREES: dict[str, tuple[dict[str, str], int | None]] = {
    "no limit": (MEMINFO, 8000 * 1024),
    "v2": (V2 | {"cgroup/job/memory.max": "5000\n", "cgroup/job/memory.current": "1000\n"}, 4000),
    "v2 without a limit": (
        V2 | MEMINFO | {"cgroup/job/memory.max": "max\n", "cgroup/job/memory.current": "1000\n"}, 8000 * 1024
    ),
    "v2, most of it cached files": (
        V2 | {
            "cgroup/job/memory.max": "5000", "cgroup/job/memory.current": "4900",
            "cgroup/job/memory.stat": "anon 900\ninactive_file 3000\nactive_file 1000\n",
        },
        4100,
    ),
    "v2, a limit above the own group": (
        V2 | {
            "cgroup/job/memory.max": "max", "cgroup/job/memory.current": "10",
            "cgroup/memory.max": "3000", "cgroup/memory.current": "1000",
        },
        2000,
    ),
    "v2, a path outside the container": (
        {"proc/self/cgroup": "0::/kubepods/pod1\n", "cgroup/memory.max": "3000", "cgroup/memory.current": "1000"}, 2000
    ),
    "v1": (
        V1 | {
            "cgroup/memory/job/memory.limit_in_bytes": "5000", "cgroup/memory/job/memory.usage_in_bytes": "2000",
            "cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n",
        },
        3500,
    ),
    "the machine has less than the limit": (
        V2 | MEMINFO | {"cgroup/job/memory.max": "99999999999", "cgroup/job/memory.current": "0"}, 8000 * 1024
    ),
    "another system than Linux": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_the_available_memory_is_the_least_of_the_limits_and_the_machine(tmp_path: Path, name: str) -> None:
    files, expected = TREES[name]
    write_tree(tmp_path, files)
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") == expected


@given(text=st.text(max_size=40))
def test_unreadable_accounting_is_as_none(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    files = dict.fromkeys(["proc/meminfo", "proc/self/cgroup", "cgroup/memory.max", "cgroup/memory.current"], text)
    root = write_tree(tmp_path_factory.mktemp("tree"), files)
    available = available_memory(root / "proc", root / "cgroup")
    assert available is None or available >= 0


def test_this_machine_has_memory_for_the_demo_model() -> None:
    available = available_memory()
    assert available is None or available > 10**8
    load_model(PartsFolder(DEMO), "cpu", "float32")
