import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, llama_tensors, save_shards, write_trio
from reference import naive_merge, tensors
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from llava_serving.errors import StartupError
from llava_serving.weights.checkpoint import Checkpoint
from llava_serving.weights.merge import merged_tensors


def merge(trio: Path) -> dict[str, torch.Tensor]:
    vocab = SentencePieceProcessor(model_file=str(trio / "delta" / "tokenizer.model")).vocab_size()
    return dict(merged_tensors(Checkpoint(trio / "base"), Checkpoint(trio / "delta"), vocab))


def assert_same(merged: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert merged[name].dtype == torch.float16
        assert torch.equal(merged[name].view(torch.int16), value.view(torch.int16)), name


def test_equals_the_naive_rules_to_the_bit(trio: Path) -> None:
    assert_same(merge(trio), naive_merge(trio))


@pytest.mark.parametrize("part", ["base", "delta"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_file_format_and_sharding_change_nothing(trio: Path, tmp_path: Path, part: str, count: int) -> None:
    copy = shutil.copytree(trio, tmp_path / "trio")
    stored = tensors(copy / part)
    for file in copy.glob(f"{part}/pytorch_model*"):
        file.unlink()
    if count == 1:
        save_file(stored, copy / part / "model.safetensors")
    else:
        save_shards(stored, copy / part, count, "model", "safetensors", save_file)
    assert_same(merge(copy), naive_merge(trio))


def test_the_old_file_format_of_torch_is_read(trio: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trio, tmp_path / "trio")
    stored = tensors(copy / "base")
    for file in copy.glob("base/pytorch_model*"):
        file.unlink()
    torch.save(stored, copy / "base" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(merge(copy), naive_merge(trio))


def test_a_base_stored_in_float32_is_rounded_before_the_sum(trio: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trio, tmp_path / "trio")
    wide = {name: value.float() * 1.0001 for name, value in tensors(copy / "base").items()}
    for file in copy.glob("base/pytorch_model*"):
        file.unlink()
    save_shards(wide, copy / "base", 2)
    assert_same(merge(copy), naive_merge(copy))


def test_the_inputs_stay_as_they_are(trio: Path) -> None:
    before = tensors(trio / "base"), tensors(trio / "delta")
    merge(trio)
    for stored, again in zip(before, (tensors(trio / "base"), tensors(trio / "delta")), strict=True):
        assert all(torch.equal(value, again[name]) for name, value in stored.items())


def replace_base(trio: Path, to: Path, shape: Shape, rows: int) -> Path:
    copy = shutil.copytree(trio, to)
    for file in copy.glob("base/pytorch_model*"):
        file.unlink()
    save_shards(llama_tensors(shape, rows, torch.Generator().manual_seed(9), 0.2), copy / "base", 2)
    return copy


@pytest.mark.parametrize(
    ("shape", "rows", "said"),
    [
        (Shape(hidden=48), 400, "has shape"),  # another size
        (Shape(layers=3), 400, "the delta lacks"),
        (Shape(layers=1), 400, "which the base lacks"),
        (Shape(), 401, "401 rows in the base"),  # as Vicuna has one more than LLaMA
        (Shape(), 399, "399 rows in the base"),
    ],
)
def test_a_base_that_does_not_belong_is_refused(trio: Path, tmp_path: Path, shape: Shape, rows: int, said: str) -> None:
    with pytest.raises(StartupError, match=said) as refused:
        merge(replace_base(trio, tmp_path / "trio", shape, rows))
    assert "original LLaMA" in str(refused.value)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "trio")
    shard = trio / "delta" / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-5000])
    with pytest.raises(StartupError, match=r"pytorch_model-00002-of-00003\.bin cannot be read as weights"):
        merge(trio)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "trio")
    (trio / "base" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(StartupError, match=r"pytorch_model-00002-of-00002\.bin"):
        merge(trio)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('/tmp/llava-serving-executed').touch()",)


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "trio")
    torch.save({"model.norm.weight": Exploit()}, trio / "base" / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(StartupError, match="cannot be read as weights"):
        merge(trio)
    assert not Path("/tmp/llava-serving-executed").exists()


def test_a_git_lfs_pointer_is_told(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "trio")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (trio / "base" / "pytorch_model-00002-of-00002.bin").write_bytes(pointer)
    with pytest.raises(StartupError, match="git lfs pull") as refused:
        merge(trio)
    assert "weights_only" not in str(refused.value)
