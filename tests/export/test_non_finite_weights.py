"""NaN and infinite weights, and sums that overflow float16: merge, check and the service say so and fail."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from merge_cases import Merge, copy_parts, merged_tensors, replace_weights
from reference import naive_merge, tensors
from scoring import PICTURE, running_scorer, score_body

from llava_serving.errors import StartupError
from llava_serving.tools import cli
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder

HEAD = "lm_head.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what `llava-serving check` prints, which must fail."""
    monkeypatch.setattr(sys, "argv", ["llava-serving", "check", str(folder), "--no-hashes"])
    status = cli.main()
    printed = capsys.readouterr().out
    assert status == 1, printed
    return printed


def set_values(part: Path, name: str, *values: tuple[int, float]) -> None:
    """Sets values of a tensor, each by its row and in its own column."""
    stored = tensors(part)
    for column, (row, value) in enumerate(values):
        stored[name][row, column] = value
    replace_weights(part, stored)


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("base", [(1, float("nan")), (2, float("inf"))], "2 NaN or infinite values in 1 tensor"),
        ("delta", [(5, -float("inf"))], "1 NaN or infinite values in 1 tensor"),
        ("delta", [(-1, float("nan"))], "1 NaN or infinite values in 1 tensor"),  # the row of an added token
    ],
)
def test_nan_and_infinite_values_are_counted_by_tensor_by_merge_check_and_service(
    parts_dir: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], part: str, values: list[tuple[int, float]], expected: str,
) -> None:  # fmt: skip
    copy = copy_parts(parts_dir, tmp_path)
    set_values(copy / part, HEAD, *values)
    message = merge(copy, tmp_path / "llava", status=1)
    assert expected in message
    assert f"({'language_model.' + HEAD} {len(values)})" in message
    assert "compare their hashes with the source's" in message
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    for folder in (copy, copy / part):
        printed = check(folder, monkeypatch, capsys)
        assert f"  finite    no: {expected} ({HEAD} {len(values)}): the files that hold them are damaged" in printed
    for dtype in ("float32", "float16", "bfloat16"):
        with pytest.raises(StartupError, match=rf"{HEAD} holds NaN or infinite values.*llava-serving check"):
            load_model(PartsFolder(copy), "cpu", dtype)


def test_sums_that_overflow_float16_are_counted_by_tensor(
    parts_dir: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    for part in ("base", "delta"):
        set_values(copy / part, DOWN, (3, 60000.0), (4, -60000.0))
    expected = "2 sums or numbers that overflow float16 (above 65,504) in 1 tensor"
    message = merge(copy, tmp_path / "llava", "--dtype", "bfloat16", status=1)
    assert expected in message
    assert "base and delta do not belong together" in message
    assert expected in check(copy, monkeypatch, capsys)
    with pytest.raises(StartupError, match=r"down_proj\.weight holds .*overflow float16"):
        load_model(PartsFolder(copy), "cpu", "float32")


def test_every_tensor_is_counted_before_the_merge_fails(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    vision = torch.load(copy / "vision" / "pytorch_model.bin", weights_only=True)
    vision["vision_model.post_layernorm.bias"][:2] = float("nan")
    torch.save(vision, copy / "vision" / "pytorch_model.bin")
    set_values(copy / "base", DOWN, (0, float("nan")))
    message = merge(copy, tmp_path / "llava", status=1)
    assert "3 NaN or infinite values in 2 tensors (" in message
    assert "down_proj.weight 1" in message
    assert "vision_tower.vision_model.post_layernorm.bias 2" in message


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_merged_folder_with_a_nan_is_refused_by_check_and_service(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    state["language_model.model.embed_tokens.weight"][-1, 0] = float("nan")  # an added token's row
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"embed_tokens\.weight holds NaN"):
        load_model(MergedFolder(copy), "cpu", dtype)
    printed = check(copy, monkeypatch, capsys)
    assert "finite    no: 1 NaN or infinite values in 1 tensor (language_model.model.embed_tokens.weight 1)" in printed


def test_large_values_of_a_merged_bfloat16_folder_are_no_overflow(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    state = {name: value.bfloat16() for name, value in state.items()}
    state["multi_modal_projector.linear_1.bias"][0] = 1e6
    torch.save(state, copy / "pytorch_model.bin")
    load_model(MergedFolder(copy), "cpu", "bfloat16")
    with pytest.raises(StartupError, match=r"linear_1\.bias holds"):
        load_model(MergedFolder(copy), "cpu", "float16")
    assert "finite    yes" in check(copy, monkeypatch, capsys)  # fails because random weights do not talk


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_with_clip_in_float32_and_their_merged_folder_answer_equal_to_the_bit(
    parts_dir: Path, tmp_path: Path, merge: Merge, dtype: str
) -> None:
    copy = copy_parts(parts_dir, tmp_path)
    use_float32_clip(copy / "vision")
    merge(copy, tmp_path / "llava")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, image]}
    body = {"messages": [message], "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    logprobs = []
    for folder in (PartsFolder(copy), MergedFolder(tmp_path / "llava")):
        with running_scorer(load_model(folder, "cpu", dtype)) as scorer:
            response = score_body(scorer, body)
        assert response.status == 200, response.body
        logprobs.append(json.loads(response.body)["choices"][0]["logprobs"])
    assert logprobs[0]["content"]
    assert logprobs[0] == logprobs[1]


def use_float32_clip(vision: Path) -> dict[str, torch.Tensor]:
    """Replaces CLIP's weights by float32 numbers that float16 does not hold."""
    stored = tensors(vision)
    exact = {name: value.float() * 1.0001 if value.is_floating_point() else value for name, value in stored.items()}
    torch.save(exact, vision / "pytorch_model.bin")
    return exact


def test_clip_in_float32_is_rounded_to_float16_in_the_parts_as_in_the_merged_folder(
    parts_dir: Path, tmp_path: Path, merge: Merge
) -> None:
    """v0 ran CLIP in float16."""
    copy = copy_parts(parts_dir, tmp_path)
    exact = use_float32_clip(copy / "vision")
    merge(copy, tmp_path / "llava")
    written = merged_tensors(tmp_path / "llava")
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(written[name], exact[name.removeprefix("vision_tower.")].half())
    states = [
        load_model(folder, "cpu", "float32").model.state_dict()
        for folder in (PartsFolder(copy), MergedFolder(tmp_path / "llava"))
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert torch.equal(states[0]["lm_head.weight"].half(), naive_merge(copy)["lm_head.weight"])
