"""The committed demo model: its layout, its accuracy, and the accuracy of its parts."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from heldout import Example, easy_vqa_test, new_scenes, unseen_digits
from server import Server, as_base64

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
SETS = ("easy-VQA test", "new scenes", "unseen digits")


def index(part: str) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((DEMO / part / "pytorch_model.bin.index.json").read_text())["weight_map"]
    return weight_map


def test_the_weights_fit_in_16_mb() -> None:
    files = [file for part in ("base", "delta", "vision") for file in (DEMO / part).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 16_000_000


def test_the_tensors_have_the_names_of_the_13b() -> None:
    layers = range(json.loads((DEMO / "delta" / "config.json").read_text())["num_hidden_layers"])
    blocks = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + ["self_attn.rotary_emb.inv_freq"]
    blocks += [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    blocks += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    llama = {f"model.layers.{i}.{block}" for i, block in itertools.product(layers, blocks)}
    llama |= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(index("base")) == llama
    assert set(index("delta")) == llama | {"model.mm_projector.weight", "model.mm_projector.bias"}


def test_the_delta_has_the_pitfalls_of_the_original() -> None:
    """Wrong ids in generation_config.json, a padding token without a row, and added rows that are not differences."""
    config = json.loads((DEMO / "delta" / "config.json").read_text())
    generation = json.loads((DEMO / "delta" / "generation_config.json").read_text())
    added = json.loads((DEMO / "delta" / "added_tokens.json").read_text())
    vocab = json.loads((DEMO / "base" / "config.json").read_text())["vocab_size"]
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, 1)
    assert added == {"<im_patch>": vocab, "<im_start>": vocab + 1, "<im_end>": vocab + 2, "[PAD]": vocab + 3}
    assert config["vocab_size"] == vocab + 3
    shard = torch.load(DEMO / "delta" / index("delta")["model.embed_tokens.weight"], weights_only=True)
    assert shard["model.embed_tokens.weight"].shape[0] == vocab + 3
    assert shard["model.embed_tokens.weight"].dtype == torch.float16


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs demo/recipe/evaluate.py on a part of the held-out sets and returns its report."""
    report = tmp_path_factory.mktemp("evaluate") / "report.json"
    command = [sys.executable, str(DEMO / "recipe" / "evaluate.py"), "--limit", "200", "--json", str(report)]
    subprocess.run(command, check=True, capture_output=True)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def accuracy(report: dict[str, Any], variant: str, name: str) -> float:
    right, total = report["right"][variant][name]["all"]
    return float(right / total)


@pytest.mark.parametrize("name", SETS)
def test_only_the_merged_model_answers(measured: dict[str, Any], name: str) -> None:
    assert accuracy(measured, "merged", name) >= 0.90
    assert accuracy(measured, "base alone", name) <= 0.10
    assert accuracy(measured, "delta alone", name) <= 0.10


@pytest.mark.parametrize("name", SETS)
def test_another_picture_lowers_the_accuracy(measured: dict[str, Any], name: str) -> None:
    assert accuracy(measured, "merged, another picture", name) <= accuracy(measured, "merged", name) - 0.25


def test_the_measured_answers_agree_with_greedy_generation(measured: dict[str, Any]) -> None:
    assert measured["greedy_asked"] >= 100
    assert measured["greedy_agrees"] == measured["greedy_asked"]


def spread(examples: Iterator[Example], count: int) -> list[Example]:
    every = list(examples)
    return every[:: len(every) // count]


def test_the_service_answers_held_out_questions(demo_server: Server) -> None:
    examples = [*spread(easy_vqa_test(), 60), *spread(new_scenes(30), 30), *spread(unseen_digits(), 30)]
    right = 0
    for example in examples:
        body = {"input_string": [example.question], "images": [as_base64(example.image)]}
        right += demo_server.score({"input_data": body}).json[0]["0"] == example.answer
    assert right / len(examples) >= 0.85


def test_the_accuracy_in_the_demo_page_is_the_committed_one() -> None:
    report = json.loads((DEMO / "accuracy.json").read_text())
    page = (DEMO / "README.md").read_text("utf-8")
    for variant, name in itertools.product(report["right"], SETS):
        row = next(line for line in page.splitlines() if line.startswith(f"| {variant} |"))
        cells = re.split(r"\s*\|\s*", row.strip("| "))
        assert cells[1 + SETS.index(name)] == f"{accuracy(report, variant, name):.1%}"
