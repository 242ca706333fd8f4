import json
import shutil
from pathlib import Path

import pytest

from llava_serving.errors import StartupError
from llava_serving.weights.model_dir import DEMO, MergedCheckpoint, ModelParts, find_model


@pytest.mark.parametrize("nested", ["", "llava", "llava/1"])
def test_a_trio_is_found_where_azure_mounts_it(parts_dir: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(parts_dir, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == ModelParts(tmp_path / "mount" / nested)


@pytest.mark.parametrize("nested", ["", "llava/1"])
def test_a_merged_checkpoint_is_found_where_azure_mounts_it(merged: Path, tmp_path: Path, nested: str) -> None:
    shutil.copytree(merged, tmp_path / "mount" / nested)
    assert find_model(str(tmp_path / "mount")) == MergedCheckpoint(tmp_path / "mount" / nested)


def test_unset_is_the_demo_model() -> None:
    assert find_model(None) == find_model("") == ModelParts(DEMO)


def refusal(directory: Path) -> str:
    with pytest.raises(StartupError) as refused:
        find_model(str(directory))
    message = str(refused.value)
    assert str(directory) in message
    return message


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nothing")


def test_an_empty_folder_and_strange_files_are_described(tmp_path: Path) -> None:
    assert "an empty folder" in refusal(tmp_path)
    (tmp_path / "weights.gguf").touch()
    message = refusal(tmp_path)
    assert "weights.gguf" in message
    assert "base/" in message  # what was looked for


@pytest.mark.parametrize("part", ["base", "vision"])
def test_a_trio_with_a_part_missing_says_which(parts_dir: Path, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    shutil.rmtree(copy / part)
    assert f"without {part}/" in refusal(copy)


def test_a_delta_without_its_base_is_refused_by_name(parts_dir: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(parts_dir / "delta", tmp_path / "model")
    message = refusal(alone)
    assert "delta" in message
    assert "babbles" in message
    copy = shutil.copytree(parts_dir, tmp_path / "parts_dir")
    shutil.rmtree(copy / "base")
    assert "babbles" in refusal(copy)


def test_a_base_alone_is_refused_by_name(parts_dir: Path, tmp_path: Path) -> None:
    assert "a LLaMA checkpoint alone" in refusal(shutil.copytree(parts_dir / "base", tmp_path / "model"))


def test_two_models_are_one_too_many(parts_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(parts_dir, tmp_path / "one")
    shutil.copytree(parts_dir, tmp_path / "two")
    assert "more than one model" in refusal(tmp_path)


def test_a_llava_config_without_a_tower_is_not_the_hugging_face_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    assert "its authors' layout" in refusal(tmp_path)
