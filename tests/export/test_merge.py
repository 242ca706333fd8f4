"""Runs `llava-serving merge` and compares the merged folder with tests/reference.py."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import save_shards
from merge_cases import (
    Merge,
    assert_bits_equal,
    copy_parts,
    copy_with_base_in_meta_layout,
    merged_tensors,
    replace_weights,
)
from reference import naive_merge, stock_names, tensors
from safetensors.torch import save_file

from llava_serving.inputs.templates import V0, V1
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder


def test_the_merged_tensors_equal_a_naive_merge_to_the_bit(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    assert_bits_equal(merged_tensors(tmp_path / "llava"), stock_names(parts_dir))


def test_bfloat16_rounds_the_float16_sums(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava", "--dtype", "bfloat16")
    assert_bits_equal(
        merged_tensors(tmp_path / "llava"), {name: value.bfloat16() for name, value in stock_names(parts_dir).items()}
    )


@pytest.mark.parametrize("part", ["base", "delta"])
@pytest.mark.parametrize("form", ["one safetensors", "safetensors", "bin", "old bin", "parameters"])
def test_the_file_format_and_sharding_do_not_change_the_result(
    parts_dir: Path, tmp_path: Path, merge: Merge, part: str, form: str
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    stored = tensors(copy / part)
    for file in copy.glob(f"{part}/pytorch_model*"):
        file.unlink()
    if form == "one safetensors":
        save_file(stored, copy / part / "model.safetensors")
    elif form == "safetensors":
        save_shards(stored, copy / part, 4, "model", "safetensors", save_file)
    elif form == "bin":
        torch.save(stored, copy / part / "pytorch_model.bin")
    elif form == "old bin":
        torch.save(stored, copy / part / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        torch.save(
            {name: torch.nn.Parameter(value) for name, value in stored.items()}, copy / part / "pytorch_model.bin"
        )
    merge(copy, tmp_path / "llava")
    assert_bits_equal(merged_tensors(tmp_path / "llava"), stock_names(parts_dir))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_base_in_meta_layout_gives_the_same_result(parts_dir: Path, tmp_path: Path, merge: Merge, ranks: int) -> None:
    copy = copy_with_base_in_meta_layout(parts_dir, tmp_path, ranks)
    merge(copy, tmp_path / "llava")
    assert_bits_equal(merged_tensors(tmp_path / "llava"), stock_names(parts_dir))
    # The service, which merges while it loads, reads the same base.
    model = load_model(PartsFolder(copy), "cpu", "float16").model
    assert torch.equal(model.lm_head.weight, naive_merge(parts_dir)["lm_head.weight"])


def test_a_base_in_float32_is_rounded_before_the_sum(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    replace_weights(copy / "base", {name: value.float() * 1.0001 for name, value in tensors(copy / "base").items()})
    merge(copy, tmp_path / "llava")
    assert_bits_equal(merged_tensors(tmp_path / "llava"), stock_names(copy))


def test_added_tokens_keep_the_ids_of_their_delta(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    """The ids are those of 7B-delta-v0, which has [PAD] first and a row for it."""
    copy = copy_parts(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    rows = len(stored["lm_head.weight"])
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        stored[name] = torch.cat([stored[name], stored[name][-1:]])
    replace_weights(copy / "delta", stored)
    config = json.loads((copy / "delta" / "config.json").read_text())
    (copy / "delta" / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 1}))
    names = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
    added = {name: rows - 3 + i for i, name in enumerate(names)}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    merge(copy, tmp_path / "llava")
    assert json.loads((tmp_path / "llava" / "added_tokens.json").read_text()) == added
    merged = load_model(MergedFolder(tmp_path / "llava"), "cpu", "float32")
    assert merged.tokenizer.image == load_model(PartsFolder(copy), "cpu", "float32").tokenizer.image


def test_a_merged_folder_records_its_conversation_template(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava", "--template", "v1")
    assert load_model(MergedFolder(tmp_path / "llava"), "cpu", "float32").template is V1
    assert load_model(MergedFolder(tmp_path / "llava"), "cpu", "float32", "v0").template is V0
    assert load_model(PartsFolder(parts_dir), "cpu", "float32").template is V0
    assert load_model(PartsFolder(parts_dir), "cpu", "float32", "v1").template is V1


def test_the_merge_does_not_change_its_inputs(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    before = {file: file.read_bytes() for file in parts_dir.rglob("*") if file.is_file()}
    merge(parts_dir, tmp_path / "llava")
    assert {file: file.read_bytes() for file in parts_dir.rglob("*") if file.is_file()} == before
