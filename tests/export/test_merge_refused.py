"""Runs `llava-serving merge` on wrong parts. It ends with a message before it writes anything."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, llama_tensors
from merge_cases import (
    Merge,
    copy_parts,
    copy_with_base_in_meta_layout,
    replace_weights,
)
from reference import naive_merge, tensors
from safetensors.torch import save_file


def refused_message(merge: Merge, parts_dir: Path, tmp_path: Path) -> str:
    """Returns the message of a merge that fails. Nothing is written."""
    message = merge(parts_dir, tmp_path / "llava", status=1)
    assert not (tmp_path / "llava").exists()
    assert not (tmp_path / "llava.partial").exists()
    return message


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        (Shape(hidden=48), 400, "has shape"),  # another size
        (Shape(layers=3), 400, "the delta lacks"),
        (Shape(layers=1), 400, "which the base lacks"),
        (Shape(), 401, "401 rows in the base"),  # as Vicuna has one more than LLaMA
        (Shape(), 399, "399 rows in the base"),
    ],
)
def test_a_base_of_another_size_is_refused(
    parts_dir: Path, tmp_path: Path, merge: Merge, shape: Shape, rows: int, expected: str
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    replace_weights(copy / "base", llama_tensors(shape, rows, torch.Generator().manual_seed(9), 0.2))
    message = refused_message(merge, copy, tmp_path)
    assert expected in message
    assert "original LLaMA" in message


def test_swapped_base_and_delta_are_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    (copy / "base").rename(copy / "other")
    (copy / "delta").rename(copy / "base")
    (copy / "other").rename(copy / "delta")
    assert "base and delta are swapped" in refused_message(merge, copy, tmp_path)


def test_a_merged_model_as_base_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    replace_weights(copy / "base", naive_merge(parts_dir))
    assert "base is a merged LLaVA v0 in its authors' layout" in refused_message(merge, copy, tmp_path)


def test_a_delta_as_base_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    rows = len(tensors(copy / "base")["lm_head.weight"])
    replace_weights(copy / "base", llama_tensors(Shape(), rows, torch.Generator().manual_seed(9), 0.1, norm=0.0))
    assert "base is a delta without a projector, as Vicuna's are" in refused_message(merge, copy, tmp_path)


def test_a_merged_model_as_delta_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    near = {
        name: value * 0.05 if name in tensors(parts_dir / "base") else value
        for name, value in tensors(parts_dir / "delta").items()
    }
    replace_weights(copy / "delta", near)
    replace_weights(copy / "delta", naive_merge(copy))
    assert "is not a delta" in refused_message(merge, copy, tmp_path)


def test_a_merged_model_as_delta_is_refused_whatever_its_matrices_are(
    parts_dir: Path, tmp_path: Path, merge: Merge
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    rows = len(tensors(copy / "delta")["lm_head.weight"])
    other = llama_tensors(Shape(), rows, torch.Generator().manual_seed(9), 0.2)
    projector = {name: value for name, value in tensors(copy / "delta").items() if "mm_projector" in name}
    replace_weights(copy / "delta", other | projector)
    assert "delta is not a delta: its norms are as large" in refused_message(merge, copy, tmp_path)


def test_a_base_that_is_merged_already_is_named_and_not_the_delta(
    parts_dir: Path, tmp_path: Path, merge: Merge
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    without_projector = {name: value for name, value in naive_merge(copy).items() if "mm_projector" not in name}
    replace_weights(copy / "base", without_projector)
    expected = f"{copy / 'base'} is merged already: it holds the delta of {copy / 'delta'}"
    assert expected in refused_message(merge, copy, tmp_path)  # by the rows of the added tokens

    rows = len(tensors(parts_dir / "base")["lm_head.weight"])
    is_norm = {name: name.endswith("norm.weight") for name in without_projector}
    large = {name: value if is_norm.get(name) else value * 8 for name, value in tensors(parts_dir / "delta").items()}
    replace_weights(copy / "delta", large)
    replace_weights(copy / "base", tensors(parts_dir / "base"))
    merged = {name: value[:rows] for name, value in naive_merge(copy).items() if name in without_projector}
    replace_weights(copy / "base", merged)
    assert expected in refused_message(merge, copy, tmp_path)  # by its matrices


@pytest.mark.parametrize("part", ["base", "delta"])
@pytest.mark.parametrize("is_in_config", [True, False])
def test_tied_embeddings_are_named(
    parts_dir: Path, tmp_path: Path, merge: Merge, part: str, is_in_config: bool
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    if is_in_config:
        config = json.loads((copy / part / "config.json").read_text())
        (copy / part / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    else:
        stored = tensors(copy / part)
        del stored["lm_head.weight"]
        replace_weights(copy / part, stored)
    message = refused_message(merge, copy, tmp_path)
    assert f"{copy / part} has tied embeddings" in message
    assert "original LLaMA" not in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_name_or_path": "lmsys/vicuna-13b-v1.1"}, "a vicuna"),
        ({"max_position_embeddings": 4096}, "Llama 2"),
        ({"rms_norm_eps": 1e-5}, "Llama 2"),
        ({"model_type": "gpt_neox"}, "nothing that is known"),
    ],
)
def test_a_base_with_the_config_of_another_model_is_refused(
    parts_dir: Path, tmp_path: Path, merge: Merge, change: dict[str, object], expected: str
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    config = json.loads((copy / "base" / "config.json").read_text())
    (copy / "base" / "config.json").write_text(json.dumps(config | change))
    assert expected in refused_message(merge, copy, tmp_path)


def test_a_delta_of_llava_1_5_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    for kind in ("weight", "bias"):
        stored[f"model.mm_projector.0.{kind}"] = stored.pop(f"model.mm_projector.{kind}")
    replace_weights(copy / "delta", stored)
    assert "as LLaVA 1.5's" in refused_message(merge, copy, tmp_path)


def test_a_delta_without_its_projector_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    stored = {name: value for name, value in tensors(copy / "delta").items() if "mm_projector" not in name}
    replace_weights(copy / "delta", stored)
    assert "drops it, without a word" in refused_message(merge, copy, tmp_path)


def test_an_added_token_without_an_embedding_row_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    added = json.loads((copy / "delta" / "added_tokens.json").read_text())
    shifted = {token: number + 1 for token, number in added.items()}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(shifted))
    assert "has no row in the embedding" in refused_message(merge, copy, tmp_path)


def test_a_wrong_preprocessor_and_gaps_in_the_added_tokens_are_refused(
    parts_dir: Path, tmp_path: Path, merge: Merge
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    (copy / "vision" / "preprocessor_config.json").write_text('{"image_std": [1, 1, 0]}')
    assert "image_std" in refused_message(merge, copy, tmp_path)
    (copy / "vision" / "preprocessor_config.json").unlink()
    added = json.loads((copy / "delta" / "added_tokens.json").read_text())
    del added["<im_start>"]  # between the two others
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    assert "without a gap" in merge(copy, tmp_path / "llava", "--template", "v0", status=1)
    assert not (tmp_path / "llava.partial").exists()


def test_a_llama_as_vision_tower_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    shutil.rmtree(copy / "vision")
    shutil.copytree(copy / "base", copy / "vision")
    assert "vision is a LLaMA; the vision tower is openai/clip" in refused_message(merge, copy, tmp_path)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("base/config.json", "there is no config.json in"),
        ("delta/config.json", "there is no config.json in"),
        ("vision/config.json", "there is no config.json in"),
        ("delta/tokenizer.model", "no tokenizer.model in"),
        ("delta/added_tokens.json", "lists no <im_patch>"),
        ("vision/pytorch_model.bin", "no weights in"),
    ],
)
def test_a_missing_file_is_named(parts_dir: Path, tmp_path: Path, merge: Merge, file: str, expected: str) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    (copy / file).unlink()
    message = refused_message(merge, copy, tmp_path)
    assert expected in message
    assert str((copy / file).parent) in message


def test_a_missing_shard_is_named(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    (copy / "base" / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in refused_message(merge, copy, tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    file = copy / "base" / "pytorch_model-00002-of-00002.bin"
    shard = torch.load(file, weights_only=True)
    del shard["model.norm.weight"]
    torch.save(shard, file)
    assert f"{file} lacks model.norm.weight" in refused_message(merge, copy, tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_in_meta_layout_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge, rank: int) -> None:
    copy = copy_with_base_in_meta_layout(parts_dir, tmp_path, 2)
    (copy / "base" / f"consolidated.0{rank}.pth").unlink()
    message = refused_message(merge, copy, tmp_path)
    assert "consolidated.00.pth" in message if rank == 0 else "is one missing?" in message


@pytest.mark.parametrize("form", ["bin", "old bin", "safetensors"])
@pytest.mark.parametrize("cut", [1, 5000])
def test_a_truncated_file_is_named(parts_dir: Path, tmp_path: Path, merge: Merge, form: str, cut: int) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    for file in copy.glob("delta/pytorch_model*"):
        file.unlink()
    file = copy / "delta" / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(stored, file)
    else:
        torch.save(stored, file, _use_new_zipfile_serialization=form == "bin")
    os.truncate(file, file.stat().st_size - cut)
    message = refused_message(merge, copy, tmp_path)
    assert str(file) in message
    assert "truncated" in message


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('/tmp/llava-serving-executed').touch()",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_checkpoint_that_would_execute_code_is_refused(
    parts_dir: Path, tmp_path: Path, merge: Merge, new_format: bool
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    file = copy / "base" / "pytorch_model-00002-of-00002.bin"
    torch.save({"model.norm.weight": Exploit()}, file, _use_new_zipfile_serialization=new_format)
    message = refused_message(merge, copy, tmp_path)
    assert f"{file} cannot be read as weights" in message
    assert "weights_only" not in message
    assert not Path("/tmp/llava-serving-executed").exists()


def test_a_git_lfs_pointer_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (copy / "base" / "pytorch_model-00002-of-00002.bin").write_bytes(pointer)
    assert "git lfs pull" in refused_message(merge, copy, tmp_path)


def test_too_little_disk_space_is_refused(
    parts_dir: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "GB free" in refused_message(merge, parts_dir, tmp_path)


def test_an_output_that_is_not_empty_or_is_a_part_is_refused(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "mine").touch()
    assert "not empty" in merge(parts_dir, tmp_path / "llava", status=1)
    assert [file.name for file in (tmp_path / "llava").iterdir()] == ["mine"]
    assert "is or holds the base" in merge(parts_dir, parts_dir / "base", status=1)
