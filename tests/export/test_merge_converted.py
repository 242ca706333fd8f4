"""`llava-serving merge --merged`: a model in the authors' own merged layout, with its CLIP, in the service's layout."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import save_shards
from merge_cases import Merge, assert_bits_equal, merged_tensors
from reference import naive_merge, stock_names
from scoring import PICTURE, running_scorer, score, text_of

from llava_serving.tools import cli
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import MergedFolder


def write_authors_merge(parts_dir: Path, directory: Path) -> Path:
    """Writes what `apply_delta` wrote in 2023: three shards, LlavaLlama's config, and the delta's tokenizer files."""
    shutil.copytree(parts_dir / "delta", directory, ignore=shutil.ignore_patterns("pytorch_model*"))
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    save_shards(naive_merge(parts_dir) | frequencies, directory, 3)
    config = json.loads((directory / "config.json").read_text())
    llava = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "tune_mm_mlp_adapter": False}
    (directory / "config.json").write_text(json.dumps(config | llava))
    return directory


def convert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], merged: Path, vision: Path, *options: str
) -> tuple[int, str]:
    """Runs the command. Returns its exit status and stderr."""
    arguments = ["merge", "--merged", str(merged), "--vision", str(vision), *options]
    monkeypatch.setattr(sys, "argv", ["llava-serving", *arguments])
    status = cli.main()
    return status, capsys.readouterr().err


def test_the_converted_folder_equals_the_merge_of_the_parts(
    parts_dir: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authors = write_authors_merge(parts_dir, tmp_path / "authors")
    output = tmp_path / "llava"
    status, stderr = convert(monkeypatch, capsys, authors, parts_dir / "vision", "--output", str(output))
    assert status == 0, stderr
    assert_bits_equal(merged_tensors(output), stock_names(parts_dir))
    merge(parts_dir, tmp_path / "from_parts")
    for name in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja", "README.md"):
        assert (output / name).read_text() == (tmp_path / "from_parts" / name).read_text(), name
    assert set(json.loads((output / "llava_merge.json").read_text())["parts"]) == {"merged", "vision"}
    loaded, expected = (
        load_model(MergedFolder(folder), "cpu", "float32") for folder in (output, tmp_path / "from_parts")
    )
    assert loaded.tokenizer.image == expected.tokenizer.image
    assert loaded.template == expected.template
    answers = []
    for model in (loaded, expected):
        with running_scorer(model) as scorer:
            answers.append(text_of(score(scorer, "What is it?", PICTURE, max_new_tokens=8, temperature=0)))
    assert answers[0] == answers[1]


def test_other_folders_and_options_are_refused(
    parts_dir: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, output = parts_dir / "vision", ("--output", str(tmp_path / "llava"))
    for folder, expected in (
        (parts_dir / "delta", "delta is a LLaVA v0 delta"),
        (parts_dir / "base", "base is a LLaMA; --merged takes a merged LLaVA v0"),
        (merged, "needs no merge: serve it as it is"),
        (tmp_path / "nothing", "there is no folder"),
    ):
        status, message = convert(monkeypatch, capsys, folder, vision, *output)
        assert (status, expected in message) == (1, True), message
    status, message = convert(monkeypatch, capsys, merged, vision, "--base", str(parts_dir / "base"), *output)
    assert (status, "give --base and --delta, or --merged alone" in message) == (1, True)
    assert list(tmp_path.iterdir()) == []
