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
from llava_serving.weights.device import device_of, spread
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_dir import MergedCheckpoint, ModelParts


def assert_same_state(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, wanted = model.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name


def test_a_trio_loads_to_what_stock_transformers_loads_merged(loaded: LoadedModel, reference: Reference) -> None:
    assert_same_state(loaded.model, reference.model)


def test_a_merged_checkpoint_loads_to_the_same(merged: Path, loaded: LoadedModel) -> None:
    again = load_model(MergedCheckpoint(merged), "cpu", "float32")
    assert_same_state(again.model, loaded.model)
    assert again.tokenizer.image == loaded.tokenizer.image
    assert again.context_length == loaded.context_length


def test_in_float16_the_weights_are_the_merge_to_the_bit(parts_dir: Path) -> None:
    state = load_model(ModelParts(parts_dir), "cpu", "float16").model.state_dict()
    merged = naive_merge(parts_dir)
    assert torch.equal(state["lm_head.weight"], merged["lm_head.weight"])
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(state[f"model.language_model.{name}"], merged[f"model.{name}"])
    assert torch.equal(state["model.multi_modal_projector.linear_1.bias"], merged["model.mm_projector.bias"])


def test_bfloat16_is_rounded_after_the_sum(parts_dir: Path) -> None:
    state = load_model(ModelParts(parts_dir), "cpu", "bfloat16").model.state_dict()
    assert torch.equal(state["lm_head.weight"], naive_merge(parts_dir)["lm_head.weight"].bfloat16())


def test_ids_come_from_the_checkpoint_and_not_from_its_generation_config(loaded: LoadedModel) -> None:
    config = loaded.model.config
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (1, 2)
    assert config.image_token_index == loaded.tokenizer.image.patch == loaded.tokenizer.text_vocab_size
    assert loaded.model.generation_config.eos_token_id is None


def test_another_order_of_added_tokens_is_followed(parts_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    first = json.loads((copy / "delta" / "added_tokens.json").read_text())["<im_patch>"]
    added = {"<im_start>": first, "<im_end>": first + 1, "<im_patch>": first + 2}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    image = load_model(ModelParts(copy), "cpu", "float32").tokenizer.image
    assert (image.start, image.end, image.patch) == (first, first + 1, first + 2)


def test_a_delta_without_its_projector_is_refused(tmp_path: Path) -> None:
    parts_dir = write_parts(tmp_path / "parts_dir")
    index = parts_dir / "delta" / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if "mm_projector" not in k}
    index.write_text(json.dumps(content))
    with pytest.raises(StartupError, match=r"delta has model\.mm_projector\.weight"):
        load_model(ModelParts(parts_dir), "cpu", "float32")


def test_a_merged_checkpoint_that_lacks_a_tensor_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    del state["language_model.model.layers.0.mlp.up_proj.weight"]
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"layers\.0\.mlp\.up_proj"):
        load_model(MergedCheckpoint(copy), "cpu", "float32")


def test_cuda_that_is_not_there_is_refused(parts_dir: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(
        StartupError,
        match=r"LLAVA_DEVICE=cuda, and torch .* can use no CUDA device: (Torch not compiled|Found no NVIDIA)",
    ):
        load_model(ModelParts(parts_dir), "cuda", "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_weights_are_the_merge_to_the_bit(parts_dir: Path) -> None:
    model = load_model(ModelParts(parts_dir), "auto", "auto").model
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert torch.equal(model.lm_head.weight.cpu(), naive_merge(parts_dir)["lm_head.weight"])


LOAD_AND_WATCH = """
import sys, threading, time
from pathlib import Path
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_dir import find_model
from llava_serving.weights.chunk_reader import BUFFER_BYTES

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while True:
        seen.append(anonymous_bytes())
        time.sleep(0.001)

load_model(find_model(sys.argv[1]), "cpu", "float16")  # what the libraries themselves allocate
before, seen = anonymous_bytes(), []
threading.Thread(target=watch, daemon=True).start()
model = load_model(find_model(sys.argv[2]), "cpu", "float16").model
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((max(seen) - before - BUFFER_BYTES) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
@pytest.mark.parametrize("is_merged", [False, True])
def test_loading_peaks_at_the_model_and_what_is_read_ahead(parts_dir: Path, tmp_path: Path, is_merged: bool) -> None:
    large = write_parts(tmp_path / "parts_dir", Shape(hidden=1024, intermediate=4096, layers=16, heads=8))
    if is_merged:
        large = write_merged(large, tmp_path / "merged")
    command = [sys.executable, "-c", LOAD_AND_WATCH, str(parts_dir), str(large)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.8 < float(run.stdout) < 1.05


def test_a_tower_saved_by_itself_is_read_like_the_hub_s_clip(
    parts_dir: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    stored = torch.load(copy / "vision" / "pytorch_model.bin", weights_only=True)
    alone = {name.removeprefix("vision_model."): value for name, value in stored.items()}
    torch.save(alone | {"text_model.final_layer_norm.bias": torch.ones(3)}, copy / "vision" / "pytorch_model.bin")
    assert_same_state(load_model(ModelParts(copy), "cpu", "float32").model, loaded.model)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "content", "said"),
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
def test_a_broken_file_is_named(parts_dir: Path, tmp_path: Path, file: str, content: str, said: str) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    (copy / file).write_text(content)
    with pytest.raises(StartupError, match=said):
        load_model(ModelParts(copy), "cpu", "float32")


def test_an_added_token_without_a_row_is_refused(parts_dir: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    change_json(copy / "delta" / "added_tokens.json", **{"<im_end>": loaded.vocab_size})
    with pytest.raises(StartupError, match="has no row in the embedding"):
        load_model(ModelParts(copy), "cpu", "float32")


def test_a_merged_checkpoint_without_its_added_tokens_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    (copy / "added_tokens.json").unlink()
    with pytest.raises(StartupError, match=r"added_tokens\.json"):
        load_model(MergedCheckpoint(copy), "cpu", "float32")


def test_damaged_merged_weights_are_named(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(StartupError, match=r"no weights in .*llava: looked for model\.safetensors"):
        load_model(MergedCheckpoint(copy), "cpu", "float32")
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(StartupError, match=r"model\.safetensors"):
        load_model(MergedCheckpoint(copy), "cpu", "float32")


def test_a_language_model_that_is_no_llama_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"text_config": {"model_type": "gemma"}}))
    with pytest.raises(StartupError, match="of type 'gemma'"):
        load_model(MergedCheckpoint(copy), "cpu", "float32")


def test_a_model_is_spread_over_gpus_with_its_layers_whole(loaded: LoadedModel) -> None:
    model = loaded.model
    size = sum(p.numel() * 4 for p in model.parameters())
    places = spread(model, {0: size, 1: size, 2: size}, torch.float32)
    numbers = {name: torch.device("cuda", number) for name, number in places.items()}
    of = {name: device_of(name, numbers).index for name, _ in model.named_parameters()}
    assert len(set(of.values())) > 1
    for number in range(3):
        held = sum(p.numel() * 4 for name, p in model.named_parameters() if of[name] == number)
        assert held < 0.7 * size
    layers = [{of[name] for name in of if f"language_model.layers.{layer}." in name} for layer in range(2)]
    assert all(len(devices) == 1 for devices in layers)
    with pytest.raises(StartupError, match="does not fit the 2 GPUs"):
        spread(model, {0: size // 8, 1: size // 8}, torch.float32)
