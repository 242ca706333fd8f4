"""The search for the model under AZUREML_MODEL_DIR, and what it says of folders without one."""

import json
import shutil
from pathlib import Path

import pytest

from llava_serving.errors import StartupError
from llava_serving.weights.model_folder import DEMO, MergedCheckpoint, ModelParts, find_model


@pytest.mark.parametrize("nested", ["", "llava", "llava/1"])
def test_model_parts_are_found_where_azure_mounts_them(parts_dir: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(parts_dir, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == ModelParts(tmp_path / "mount" / nested)


@pytest.mark.parametrize("nested", ["", "llava/1"])
def test_a_merged_checkpoint_is_found_where_azure_mounts_it(merged: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(merged, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == MergedCheckpoint(tmp_path / "mount" / nested)


def test_without_a_model_dir_the_demo_model_is_found() -> None:
    assert find_model(None) == find_model("") == ModelParts(DEMO)


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
    assert "babbles" in message
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    shutil.rmtree(copy / "base")
    assert "babbles" in error_message(copy)


def test_a_base_alone_is_refused(parts_dir: Path, tmp_path: Path) -> None:
    assert "a LLaMA checkpoint alone" in error_message(shutil.copytree(parts_dir / "base", tmp_path / "model"))


def test_two_models_are_refused(parts_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(parts_dir, tmp_path / "one")
    shutil.copytree(parts_dir, tmp_path / "two")
    assert "more than one model" in error_message(tmp_path)


def test_a_llava_config_without_a_vision_config_is_the_authors_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    assert "its authors' layout" in error_message(tmp_path)
