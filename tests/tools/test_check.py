"""`llava-serving check`, by what it prints and its exit status."""

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
from llava_serving.weights.model_dir import DEMO

Check = Callable[..., str]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command in this process; what it printed. Fails unless it ends with `status`."""

    def run(directory: Path, *options: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "check", str(directory), *options])
        ended = cli.main()
        printed = capsys.readouterr().out
        assert ended == status, printed
        return printed

    return run


def authors(directory: Path) -> Path:
    """The demo merged as its authors would have: one folder of LLaMA and projector, and the delta's other files."""
    copy = shutil.copytree(DEMO / "delta", directory)
    for file in copy.glob("pytorch_model*"):
        file.unlink()
    torch.save(naive_merge(DEMO), copy / "pytorch_model.bin")
    return copy


@pytest.mark.parametrize(
    ("part", "what", "talks"),
    [
        ("", "the parts of a LLaVA v0, which are merged while loading, the embedded demo model", "yes"),
        ("base", "a LLaMA", "yes"),
        ("delta", "a LLaVA v0 delta: differences, which cannot be used directly", "no, as differences do not"),
        ("vision", "a CLIP", None),
    ],
)
def test_says_what_a_folder_is_and_whether_it_talks(check: Check, part: str, what: str, talks: str | None) -> None:
    printed = check(DEMO / part)
    assert f"  is        {what}\n" in printed
    assert re.search(r"^  whole     yes", printed, re.MULTILINE)
    found = re.search(r"^  talks     (.*): loss", printed, re.MULTILINE)
    assert (found[1] if found else None) == talks
    files = sorted((DEMO / part).rglob("*.bin"))
    assert files
    for file in files:
        assert f"{file.stat().st_size:,}  {hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" in printed


def test_a_merged_folder(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [word for part in ("base", "delta", "vision") for word in (f"--{part}", str(DEMO / part))]
    monkeypatch.setattr(sys, "argv", ["llava-serving", "merge", *parts, "--output", str(tmp_path / "llava")])
    assert cli.main() == 0
    printed = check(tmp_path / "llava")
    assert "is        a merged LLaVA in Hugging Face layout" in printed
    assert "adds      <im_end> 1002, <im_patch> 1000, <im_start> 1001" in printed
    assert "talks     yes" in printed


def test_meta_s_layout(check: Check, parts_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "13B"
    folder.mkdir()
    save_as_meta(tensors(parts_dir / "base"), folder, Shape(), 2)
    printed = check(folder, "--no-hashes")
    assert "is        a LLaMA in Meta's own layout" in printed
    assert "not tried" in printed
    shutil.copy(parts_dir / "base" / "tokenizer.model", tmp_path)  # where Meta's release has it
    assert "talks     no: loss" in check(folder, "--no-hashes", status=1)  # random weights


def test_the_authors_merged_model_is_held_against_what_they_published(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = authors(tmp_path / "merged")
    printed = check(folder)
    assert "is        a merged LLaVA v0 in its authors' layout, without its CLIP" in printed
    assert "talks     yes" in printed
    assert "published" not in printed  # a name that is not on their list
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00003.bin")
    index = {"weight_map": dict.fromkeys(naive_merge(DEMO), "pytorch_model-00001-of-00003.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "not the authors' (md5 " in check(folder)
    md5 = hashlib.md5((folder / "pytorch_model-00001-of-00003.bin").read_bytes()).hexdigest()
    monkeypatch.setitem(published.MD5, "pytorch_model-00001-of-00003.bin", md5)
    assert "as the authors published it" in check(folder)


def test_a_model_with_one_broken_layer_does_not_talk(check: Check, tmp_path: Path) -> None:
    folder = authors(tmp_path / "merged")
    merged, random = naive_merge(DEMO), torch.Generator().manual_seed(0)
    for name in ("mlp.down_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.v_proj"):
        name = f"model.layers.1.{name}.weight"
        merged[name] = torch.randn(merged[name].shape, generator=random).half()
    torch.save(merged, folder / "pytorch_model.bin")
    assert "talks     no: loss" in check(folder, "--no-hashes", status=1)


def test_what_is_not_whole(check: Check, tmp_path: Path) -> None:
    folder = authors(tmp_path / "merged")
    merged = naive_merge(DEMO)
    del merged["model.layers.3.mlp.down_proj.weight"]
    torch.save(merged, folder / "pytorch_model.bin")
    assert "whole     no: 1 tensors are missing, model.layers.3.mlp.down_proj" in check(folder, status=1)
    os.truncate(folder / "pytorch_model.bin", 1_000_000)
    assert "not usable  " in check(folder, status=1)
    assert "no weights in" in check(DEMO / "pictures", status=1)


def test_the_loss_is_the_loaded_model_s(demo_loaded: LoadedModel, loaded: LoadedModel, parts_dir: Path) -> None:
    for model, directory in ((demo_loaded, DEMO), (loaded, parts_dir)):
        language = diagnose(directory).language
        assert language is not None
        ids = list(model.tokenizer.encode([SENTENCE]).token_ids)
        assert layerwise_loss(language.merged_tensors, language.config, ids) == pytest.approx(
            sentence_loss(model), rel=1e-4
        )
