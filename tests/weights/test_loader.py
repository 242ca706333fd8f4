"""Loading a model folder: the weights against stock transformers, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, write_parts
from reference import Reference, naive_merge, write_merged

from llava_serving.errors import StartupError
from llava_serving.model.cpu_kernels.cpu_linear import CpuLinear
from llava_serving.weights.device import balanced_device_map, device_of
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder


def assert_same_state(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        assert torch.equal(state[name], value), name


def test_model_parts_load_like_stock_transformers_loads_the_merge(loaded: LoadedModel, reference: Reference) -> None:
    assert_same_state(loaded.model, reference.model)


def test_a_merged_checkpoint_loads_like_its_parts(merged: Path, loaded: LoadedModel) -> None:
    from_merged = load_model(MergedFolder(merged), "cpu", "float32")
    assert_same_state(from_merged.model, loaded.model)
    assert from_merged.tokenizer.image == loaded.tokenizer.image
    assert from_merged.context_length == loaded.context_length


def test_float16_weights_equal_the_naive_merge_to_the_bit(parts_dir: Path) -> None:
    state = load_model(PartsFolder(parts_dir), "cpu", "float16").model.state_dict()
    merged = naive_merge(parts_dir)
    assert torch.equal(state["lm_head.weight"], merged["lm_head.weight"])
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(state[f"model.language_model.{name}"], merged[f"model.{name}"])
    assert torch.equal(state["model.multi_modal_projector.linear_1.bias"], merged["model.mm_projector.bias"])


def test_bfloat16_weights_are_rounded_after_the_sum(parts_dir: Path) -> None:
    head = load_model(PartsFolder(parts_dir), "cpu", "bfloat16").model.lm_head
    weight = head.packed.unpacked() if isinstance(head, CpuLinear) else head.weight
    assert torch.equal(weight.bfloat16(), naive_merge(parts_dir)["lm_head.weight"].bfloat16())


def test_token_ids_come_from_the_tokenizer_and_not_from_the_generation_config(loaded: LoadedModel) -> None:
    config = loaded.model.config
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (1, 2)
    assert config.image_token_index == loaded.tokenizer.image.patch == loaded.tokenizer.text_vocab_size
    assert loaded.model.generation_config.eos_token_id is None


def test_added_tokens_may_have_another_order(parts_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    first = json.loads((copy / "delta" / "added_tokens.json").read_text())["<im_patch>"]
    added = {"<im_start>": first, "<im_end>": first + 1, "<im_patch>": first + 2}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    image = load_model(PartsFolder(copy), "cpu", "float32").tokenizer.image
    assert (image.start, image.end, image.patch) == (first, first + 1, first + 2)


def test_a_delta_without_its_projector_is_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts")
    index = parts / "delta" / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if "mm_projector" not in k}
    index.write_text(json.dumps(content))
    with pytest.raises(StartupError, match=r"delta has model\.mm_projector\.weight"):
        load_model(PartsFolder(parts), "cpu", "float32")


def test_a_merged_checkpoint_that_lacks_a_tensor_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    del state["language_model.model.layers.0.mlp.up_proj.weight"]
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"layers\.0\.mlp\.up_proj"):
        load_model(MergedFolder(copy), "cpu", "float32")


def test_cuda_is_refused_without_a_cuda_device(parts_dir: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(
        StartupError,
        match=r"LLAVA_DEVICE=cuda, and torch .* can use no CUDA device: (Torch not compiled|Found no NVIDIA)",
    ):
        load_model(PartsFolder(parts_dir), "cuda", "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_weights_equal_the_naive_merge_to_the_bit(parts_dir: Path) -> None:
    model = load_model(PartsFolder(parts_dir), "auto", "auto").model
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert torch.equal(model.lm_head.weight.cpu(), naive_merge(parts_dir)["lm_head.weight"])


MEASURE_LOADING = """
import sys, threading, time
from pathlib import Path
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import find_model
from llava_serving.weights.chunk_reader import BUFFER_BYTES

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def sample():
    while True:
        samples.append(anonymous_bytes())
        time.sleep(0.001)

load_model(find_model(sys.argv[1]), "cpu", "float16")  # so that the libraries' own memory is not counted
before, samples = anonymous_bytes(), []
threading.Thread(target=sample, daemon=True).start()
model = load_model(find_model(sys.argv[2]), "cpu", "float16").model
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((max(samples) - before - BUFFER_BYTES) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
@pytest.mark.parametrize("is_merged", [False, True])
def test_loading_takes_memory_for_the_model_and_read_buffers(parts_dir: Path, tmp_path: Path, is_merged: bool) -> None:
    large = write_parts(tmp_path / "parts", Shape(hidden=1024, intermediate=4096, layers=16, heads=8))
    if is_merged:
        large = write_merged(large, tmp_path / "merged")
    command = [sys.executable, "-c", MEASURE_LOADING, str(parts_dir), str(large)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.8 < float(run.stdout) < 1.05


def test_a_vision_tower_without_its_text_model_is_read(parts_dir: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    stored = torch.load(copy / "vision" / "pytorch_model.bin", weights_only=True)
    renamed = {name.removeprefix("vision_model."): value for name, value in stored.items()}
    torch.save(renamed | {"text_model.final_layer_norm.bias": torch.ones(3)}, copy / "vision" / "pytorch_model.bin")
    assert_same_state(load_model(PartsFolder(copy), "cpu", "float32").model, loaded.model)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("delta/tokenizer.model", "version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("delta/tokenizer.model", "not a model", "not a SentencePiece model"),
        ("delta/added_tokens.json", "{", "added_tokens.json cannot be read"),
        ("delta/added_tokens.json", "{}", "lists no <im_patch>"),
        ("delta/pytorch_model.bin.index.json", "{", "index.json cannot be read"),
        ("delta/config.json", "{}", "lacks vocab_size, hidden_size"),
        ("vision/config.json", "[]", "holds no JSON object"),
        ("vision/preprocessor_config.json", '{"image_std": [1, 1, 0]}', "above 0"),
        ("vision/preprocessor_config.json", '{"image_mean": [1, 2]}', "each of R, G and B"),
    ],
)
def test_a_damaged_file_is_named(parts_dir: Path, tmp_path: Path, file: str, content: str, message: str) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    (copy / file).write_text(content)
    with pytest.raises(StartupError, match=message):
        load_model(PartsFolder(copy), "cpu", "float32")


def test_an_added_token_without_a_row_is_refused(parts_dir: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_json(copy / "delta" / "added_tokens.json", **{"<im_end>": loaded.vocab_size})
    with pytest.raises(StartupError, match="has no row in the embedding"):
        load_model(PartsFolder(copy), "cpu", "float32")


def test_a_merged_checkpoint_without_its_added_tokens_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    (copy / "added_tokens.json").unlink()
    with pytest.raises(StartupError, match=r"added_tokens\.json"):
        load_model(MergedFolder(copy), "cpu", "float32")


def test_missing_or_damaged_merged_weights_are_named(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(StartupError, match=r"no weights in .*llava: looked for model\.safetensors"):
        load_model(MergedFolder(copy), "cpu", "float32")
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(StartupError, match=r"model\.safetensors"):
        load_model(MergedFolder(copy), "cpu", "float32")


def test_a_balanced_device_map_keeps_layers_whole(loaded: LoadedModel) -> None:
    model = loaded.model
    size = sum(p.numel() * 4 for p in model.parameters())
    by_module = balanced_device_map(model, {0: size, 1: size, 2: size}, torch.float32)
    device_map = {name: torch.device("cuda", index) for name, index in by_module.items()}
    gpus = {name: device_of(name, device_map).index for name, _ in model.named_parameters()}
    assert len(set(gpus.values())) > 1
    for gpu in range(3):
        bytes_on_gpu = sum(p.numel() * 4 for name, p in model.named_parameters() if gpus[name] == gpu)
        assert bytes_on_gpu < 0.7 * size
    gpus_of_layers = [{gpus[name] for name in gpus if f"language_model.layers.{layer}." in name} for layer in range(2)]
    assert all(len(gpus_of_layer) == 1 for gpus_of_layer in gpus_of_layers)
    with pytest.raises(StartupError, match="does not fit the 2 GPUs"):
        balanced_device_map(model, {0: size // 8, 1: size // 8}, torch.float32)


def test_an_unknown_conversation_template_is_named_and_a_setting_replaces_it(merged: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(merged, tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"conversation_template": "v9"}))
    with pytest.raises(StartupError, match=r"conversation_template 'v9'.*it knows v0, v1"):
        load_model(MergedFolder(folder), "cpu", "float32")
    assert load_model(MergedFolder(folder), "cpu", "float32", "v1").template.name == "v1"
