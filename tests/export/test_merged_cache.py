"""LLAVA_MERGED_CACHE_DIR: a start from parts saves the merged model, and later starts read it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from server import Server

from llava_serving.export.merged_cache import open_or_merge
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder
from llava_serving.weights.storage.fingerprint import fingerprint


def test_the_second_start_reads_the_merged_model_from_the_cache(tmp_path: Path) -> None:
    environment = {"LLAVA_MERGED_CACHE_DIR": str(tmp_path / "cache")}
    logs, answers = [], []
    for start in range(2):
        with Server(tmp_path / f"log{start}", None, environment) as server:
            server.wait_until_healthy()
            answers.append(json.loads(server.score({"input_data": {"input_string": ["the sky is"]}}).body))
            logs.append(server.log)
    assert "merged into" in logs[0]
    assert "merged into" not in logs[1]
    assert all("merged already" in log for log in logs)
    assert answers[0] == answers[1]


def test_a_copy_of_the_parts_shares_the_cache_folder_and_an_unusable_cache_is_ignored(
    tmp_path: Path, parts_dir: Path
) -> None:
    cache_dir = tmp_path / "cache"
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    merged = open_or_merge(PartsFolder(parts_dir), cache_dir, "auto")
    assert isinstance(merged, MergedFolder)
    assert open_or_merge(PartsFolder(copy), cache_dir, "auto") == merged
    (tmp_path / "file").touch()
    assert open_or_merge(PartsFolder(parts_dir), tmp_path / "file", "auto") == PartsFolder(parts_dir)


def test_one_changed_tensor_of_a_shard_gets_another_cache_folder(tmp_path: Path, parts_dir: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    cache_dir = tmp_path / "cache"
    merged = open_or_merge(PartsFolder(copy), cache_dir, "auto")
    file = copy / "delta" / "pytorch_model-00001-of-00003.bin"
    shard = torch.load(file, weights_only=True)
    name = min((name for name in shard if shard[name].dim() == 2), key=lambda name: shard[name].numel())
    torch.save({**shard, name: shard[name] + 0.01}, file)
    changed = open_or_merge(PartsFolder(copy), cache_dir, "auto")
    assert changed not in (merged, PartsFolder(copy))
    assert isinstance(changed, MergedFolder)
    loaded = load_model(changed, "cpu", "float32")
    expected = load_model(PartsFolder(copy), "cpu", "float32")
    for mine, theirs in zip(loaded.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine.half(), theirs.half())


@pytest.mark.parametrize("file", ["delta/tokenizer.model", "delta/config.json", "vision/preprocessor_config.json"])
def test_a_changed_config_or_tokenizer_file_gets_another_cache_folder(
    tmp_path: Path, parts_dir: Path, file: str
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    merged = open_or_merge(PartsFolder(copy), tmp_path / "cache", "auto")
    path = copy / file
    if path.suffix == ".json":
        path.write_bytes(path.read_bytes() + b"\n" if path.exists() else b"{}")
    else:
        path.write_bytes(path.read_bytes() + b"\x12\x00")
    assert open_or_merge(PartsFolder(copy), tmp_path / "cache", "auto") != merged


TENSORS = {f"layer.{i}.weight": (64 + i, 128) for i in range(30)} | {f"norm.{i}.weight": (64,) for i in range(5)}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", TENSORS)
def test_the_fingerprint_sees_a_change_of_any_single_tensor(tmp_path: Path, suffix: str, name: str) -> None:
    def write(tensors: dict[str, torch.Tensor]) -> object:
        if suffix == "safetensors":
            save_file(tensors, tmp_path / "model.safetensors")
        else:
            torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        return fingerprint(tmp_path)

    random = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=random) for key, shape in TENSORS.items()}
    before = write(tensors)
    assert write(tensors) == before
    assert write({**tensors, name: tensors[name] * 1.001}) != before
