"""What `llava-serving check` prints, and its exit status."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, save_as_meta
from reference import naive_merge, tensors

from llava_serving.service.self_check import SENTENCE, sentence_loss
from llava_serving.tools import cli
from llava_serving.weights import published_hashes as published
from llava_serving.weights.diagnosis import diagnose
from llava_serving.weights.layerwise_loss import layerwise_loss
from llava_serving.weights.loader import LoadedModel
from llava_serving.weights.model_folder import DEMO

Check = Callable[..., str]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command in this process and returns its output. Fails unless the exit status is `status`."""

    def run(directory: Path, *options: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "check", str(directory), *options])
        exit_status = cli.main()
        printed = capsys.readouterr().out
        assert exit_status == status, printed
        return printed

    return run


def write_authors_layout(directory: Path) -> Path:
    """Writes the demo model merged in the authors' layout: LLaMA and projector, and the delta's other files."""
    copy = shutil.copytree(DEMO / "delta", directory)
    for file in copy.glob("pytorch_model*"):
        file.unlink()
    torch.save(naive_merge(DEMO), copy / "pytorch_model.bin")
    return copy


@pytest.mark.parametrize(
    ("part", "description", "talks"),
    [
        ("", "the parts of a LLaVA v0, which are merged while loading, the embedded demo model", "yes"),
        ("base", "a LLaMA", "yes"),
        (
            "delta",
            "a LLaVA v0 delta: differences, which cannot be used directly",
            "no (expected: a delta holds differences)",
        ),
        ("vision", "a CLIP", None),
    ],
)
def test_prints_what_each_folder_of_the_demo_is_and_whether_it_talks(
    check: Check, part: str, description: str, talks: str | None
) -> None:
    printed = check(DEMO / part)
    assert f"  is        {description}\n" in printed
    assert re.search(r"^  whole     yes", printed, re.MULTILINE)
    line = re.search(r"^  talks     (.*): loss", printed, re.MULTILINE)
    assert (line[1] if line else None) == talks
    files = sorted((DEMO / part).rglob("*.bin"))
    assert files
    for file in files:
        assert f"{file.stat().st_size:,}  {hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" in printed


def test_a_merged_folder_talks(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [argument for part in ("base", "delta", "vision") for argument in (f"--{part}", str(DEMO / part))]
    monkeypatch.setattr(sys, "argv", ["llava-serving", "merge", *folders, "--output", str(tmp_path / "llava")])
    merge_status = cli.main()
    assert merge_status == 0
    printed = check(tmp_path / "llava")
    assert "is        a merged LLaVA in Hugging Face layout" in printed
    assert "adds      <im_end> 1002, <im_patch> 1000, <im_start> 1001" in printed
    assert "talks     yes" in printed


def test_meta_layout_is_read_with_the_tokenizer_one_folder_up(check: Check, parts_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "13B"
    folder.mkdir()
    save_as_meta(tensors(parts_dir / "base"), folder, Shape(), 2)
    printed = check(folder, "--no-hashes")
    assert "is        a LLaMA in Meta's own layout" in printed
    assert "not measured: the folder has no tokenizer.model" in printed
    shutil.copy(parts_dir / "base" / "tokenizer.model", tmp_path)  # the place in Meta's release
    assert "talks     no: loss" in check(folder, "--no-hashes", status=1)  # random weights


def test_the_hashes_of_the_authors_merged_model_are_compared_with_the_published_ones(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_authors_layout(tmp_path / "merged")
    printed = check(folder)
    assert "is        a merged LLaVA v0 in its authors' layout, without its CLIP" in printed
    assert "talks     yes" in printed
    assert "published" not in printed  # the authors published no hash for this name
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00003.bin")
    index = {"weight_map": dict.fromkeys(naive_merge(DEMO), "pytorch_model-00001-of-00003.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "not the authors' (md5 " in check(folder)
    md5 = hashlib.md5((folder / "pytorch_model-00001-of-00003.bin").read_bytes()).hexdigest()
    monkeypatch.setitem(published.MD5, "pytorch_model-00001-of-00003.bin", md5)
    assert "as the authors published it" in check(folder)


def test_a_model_with_one_broken_layer_does_not_talk(check: Check, tmp_path: Path) -> None:
    folder = write_authors_layout(tmp_path / "merged")
    merged, random = naive_merge(DEMO), torch.Generator().manual_seed(0)
    for name in ("mlp.down_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.v_proj"):
        name = f"model.layers.1.{name}.weight"
        merged[name] = torch.randn(merged[name].shape, generator=random).half()
    torch.save(merged, folder / "pytorch_model.bin")
    assert "talks     no: loss" in check(folder, "--no-hashes", status=1)


def test_missing_tensors_truncated_files_and_folders_without_weights_are_reported(check: Check, tmp_path: Path) -> None:
    folder = write_authors_layout(tmp_path / "merged")
    merged = naive_merge(DEMO)
    del merged["model.layers.3.mlp.down_proj.weight"]
    torch.save(merged, folder / "pytorch_model.bin")
    assert "whole     no: 1 tensors are missing, model.layers.3.mlp.down_proj" in check(folder, status=1)
    os.truncate(folder / "pytorch_model.bin", 1_000_000)
    assert "not usable  " in check(folder, status=1)
    assert "no weights in" in check(DEMO / "pictures", status=1)


def test_the_loss_equals_that_of_the_loaded_model(
    demo_loaded: LoadedModel, loaded: LoadedModel, parts_dir: Path
) -> None:
    for model, directory in ((demo_loaded, DEMO), (loaded, parts_dir)):
        language_model = diagnose(directory).language_model
        assert language_model is not None
        ids = list(model.tokenizer.encode([SENTENCE]).token_ids)
        assert layerwise_loss(language_model.tensors, language_model.config, ids) == pytest.approx(
            sentence_loss(model), rel=1e-4
        )
