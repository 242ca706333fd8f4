"""The search for the model under AZUREML_MODEL_DIR, and what it says of folders without one."""

import json
import shutil
from pathlib import Path

import pytest

from llava_serving.errors import StartupError
from llava_serving.weights.model_folder import DEMO, MergedFolder, PartsFolder, find_model
from llava_serving.weights.storage.checkpoint import open_checkpoint


@pytest.mark.parametrize("nested", ["", "llava", "llava/1"])
def test_model_parts_are_found_where_azure_mounts_them(parts_dir: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(parts_dir, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == PartsFolder(tmp_path / "mount" / nested)


@pytest.mark.parametrize("nested", ["", "llava/1"])
def test_a_merged_checkpoint_is_found_where_azure_mounts_it(merged: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(merged, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == MergedFolder(tmp_path / "mount" / nested)


def test_without_a_model_dir_the_demo_model_is_found() -> None:
    assert find_model(None) == find_model("") == PartsFolder(DEMO)


def error_message(directory: Path) -> str:
    with pytest.raises(StartupError) as error:
        find_model(str(directory))
    message = str(error.value)
    assert str(directory) in message
    return message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "is not a folder" in error_message(tmp_path / "nothing")


def test_an_empty_folder_and_unknown_files_are_described(tmp_path: Path) -> None:
    assert "an empty folder" in error_message(tmp_path)
    (tmp_path / "weights.gguf").touch()
    message = error_message(tmp_path)
    assert "weights.gguf" in message
    assert "base/" in message  # what the search looked for


@pytest.mark.parametrize("part", ["base", "vision"])
def test_a_missing_part_is_named(parts_dir: Path, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    shutil.rmtree(copy / part)
    assert f"without {part}/" in error_message(copy)


def test_a_delta_without_its_base_is_refused(parts_dir: Path, tmp_path: Path) -> None:
    delta = shutil.copytree(parts_dir / "delta", tmp_path / "model")
    message = error_message(delta)
    assert "delta" in message
    assert "answers nonsense" in message
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    shutil.rmtree(copy / "base")
    assert "answers nonsense" in error_message(copy)


def test_a_base_alone_is_refused(parts_dir: Path, tmp_path: Path) -> None:
    assert "a LLaMA checkpoint alone" in error_message(shutil.copytree(parts_dir / "base", tmp_path / "model"))


def test_two_models_are_refused(parts_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(parts_dir, tmp_path / "one")
    shutil.copytree(parts_dir, tmp_path / "two")
    assert "more than one model" in error_message(tmp_path)


def test_a_llava_config_without_a_vision_config_is_the_authors_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    message = error_message(tmp_path)
    assert "its authors' layout" in message
    assert "llava-serving merge --merged" in message


def test_a_copied_snapshot_with_dangling_links_is_named_with_the_way_out(merged: Path, tmp_path: Path) -> None:
    snapshot = shutil.copytree(merged, tmp_path / "snapshot")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    message = error_message(snapshot)
    assert "a link to ../../blobs/1234, which is not there" in message
    assert "cp -rL" in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_dangling_links_to_weights_are_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("../../blobs/1234")
    with pytest.raises(StartupError, match=r"is a link to \.\./\.\./blobs/1234, which is not there.*cp -rL"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_shards_without_their_index_are_named(tmp_path: Path, shard: str) -> None:
    (tmp_path / shard).touch()
    single = shard.replace("-00001-of-00002", "")
    with pytest.raises(StartupError, match=f"{shard} is a shard, and the index of the shards, {single}.index.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "folder/model.safetensors"])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(StartupError, match="not a file of this folder"):
        open_checkpoint(tmp_path)
