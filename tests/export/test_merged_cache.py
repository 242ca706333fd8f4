"""LLAVA_MERGED_CACHE_DIR: a start from parts saves the merged model, and later starts read it."""

import json
import shutil
from pathlib import Path

import torch
from server import Server

from llava_serving.export.merged_cache import open_or_merge
from llava_serving.weights.model_folder import MergedCheckpoint, ModelParts


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


def test_other_weights_get_another_cache_folder_and_an_unusable_cache_is_ignored(
    tmp_path: Path, parts_dir: Path
) -> None:
    cache_dir = tmp_path / "cache"
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    merged = open_or_merge(ModelParts(parts_dir), cache_dir, "auto")
    assert isinstance(merged, MergedCheckpoint)
    assert open_or_merge(ModelParts(copy), cache_dir, "auto") == merged
    file = copy / "delta" / "pytorch_model-00001-of-00003.bin"
    shard = torch.load(file, weights_only=True)
    torch.save({name: value + 0.01 for name, value in shard.items()}, file)
    assert open_or_merge(ModelParts(copy), cache_dir, "auto") not in (merged, ModelParts(copy))
    (tmp_path / "file").touch()
    assert open_or_merge(ModelParts(parts_dir), tmp_path / "file", "auto") == ModelParts(parts_dir)
