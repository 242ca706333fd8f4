"""What the tests of `llava-serving merge` share: parts to change, and the merged tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import Shape, save_as_meta, save_shards
from reference import tensors
from safetensors.torch import load_file

Merge = Callable[..., str]


def merge_command(parts_dir: Path, output: Path) -> list[str]:
    folders = [argument for part in ("base", "delta", "vision") for argument in (f"--{part}", str(parts_dir / part))]
    return ["merge", *folders, "--output", str(output)]


def merged_tensors(output: Path) -> dict[str, torch.Tensor]:
    """Returns every tensor from the file that the index names for it."""
    files = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    loaded = {file: load_file(output / file) for file in set(files.values())}
    assert sum(map(len, loaded.values())) == len(files)
    return {name: loaded[file][name] for name, file in files.items()}


def assert_bits_equal(merged: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name].view(torch.int16), tensor.view(torch.int16)), name


def copy_parts(parts_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(parts_dir, tmp_path / "parts")


def replace_weights(part: Path, stored: dict[str, torch.Tensor]) -> None:
    """Replaces the weights in a folder by `stored`, in two shards."""
    for file in part.glob("pytorch_model*"):
        file.unlink()
    save_shards(stored, part, 2)


def copy_with_base_in_meta_layout(parts_dir: Path, tmp_path: Path, ranks: int) -> Path:
    copy = copy_parts(parts_dir, tmp_path)
    stored = tensors(copy / "base")
    shutil.rmtree(copy / "base")
    (copy / "base").mkdir()
    save_as_meta(stored, copy / "base", Shape(), ranks)
    return copy
