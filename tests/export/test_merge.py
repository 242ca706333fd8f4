"""`llava-serving merge`, by what it leaves on the disk."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Shape, llama_tensors, save_as_meta, save_shards, write_parts
from reference import naive_merge, stock_names, tensors
from safetensors.torch import load_file, save_file

from llava_serving.inputs.templates import V0, V1
from llava_serving.tools import cli
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_dir import MergedCheckpoint, ModelParts

Merge = Callable[..., str]


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Merge:
    """Runs the command in this process; what it said on stderr. Fails unless it ends with `status`."""

    def run(parts_dir: Path, output: Path, *options: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["llava-serving", *command(parts_dir, output), *options])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ended = cli.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        said = capsys.readouterr().err
        assert ended == status, said
        return said

    return run


def command(parts_dir: Path, output: Path) -> list[str]:
    parts = [word for part in ("base", "delta", "vision") for word in (f"--{part}", str(parts_dir / part))]
    return ["merge", *parts, "--output", str(output)]


def written(output: Path) -> dict[str, torch.Tensor]:
    """Every tensor, as the index places them."""
    files = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    loaded = {file: load_file(output / file) for file in set(files.values())}
    assert sum(map(len, loaded.values())) == len(files)
    return {name: loaded[file][name] for name, file in files.items()}


def assert_same(merged: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert merged[name].dtype == value.dtype
        assert torch.equal(merged[name].view(torch.int16), value.view(torch.int16)), name


def copied(parts_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(parts_dir, tmp_path / "parts_dir")


def replaced(part: Path, stored: dict[str, torch.Tensor], **how: object) -> None:
    """The weights of a folder by others, in shards unless said otherwise."""
    for file in part.glob("pytorch_model*"):
        file.unlink()
    save_shards(stored, part, 2, **how)  # type: ignore[arg-type]


def with_meta_s_base(parts_dir: Path, tmp_path: Path, ranks: int) -> Path:
    copy = copied(parts_dir, tmp_path)
    stored = tensors(copy / "base")
    shutil.rmtree(copy / "base")
    (copy / "base").mkdir()
    save_as_meta(stored, copy / "base", Shape(), ranks)
    return copy


def test_equals_the_naive_rules_to_the_bit(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    assert_same(written(tmp_path / "llava"), stock_names(parts_dir))


def test_bfloat16_is_rounded_after_the_sum(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava", "--dtype", "bfloat16")
    assert_same(written(tmp_path / "llava"), {name: value.bfloat16() for name, value in stock_names(parts_dir).items()})


@pytest.mark.parametrize("part", ["base", "delta"])
@pytest.mark.parametrize("form", ["one safetensors", "safetensors", "bin", "old bin", "parameters"])
def test_the_file_format_and_sharding_change_nothing(
    parts_dir: Path, tmp_path: Path, merge: Merge, part: str, form: str
) -> None:
    copy = copied(parts_dir, tmp_path)
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
    assert_same(written(tmp_path / "llava"), stock_names(parts_dir))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_base_in_meta_s_layout_is_the_same(parts_dir: Path, tmp_path: Path, merge: Merge, ranks: int) -> None:
    copy = with_meta_s_base(parts_dir, tmp_path, ranks)
    merge(copy, tmp_path / "llava")
    assert_same(written(tmp_path / "llava"), stock_names(parts_dir))
    # and so is it for the service, which merges while it loads
    model = load_model(ModelParts(copy), "cpu", "float16").model
    assert torch.equal(model.lm_head.weight, naive_merge(parts_dir)["lm_head.weight"])


def test_a_base_in_float32_is_rounded_before_the_sum(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    replaced(copy / "base", {name: value.float() * 1.0001 for name, value in tensors(copy / "base").items()})
    merge(copy, tmp_path / "llava")
    assert_same(written(tmp_path / "llava"), stock_names(copy))


def test_the_ids_of_a_sibling_are_its_own(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    """7B-delta-v0 has [PAD] first, and a row for it."""
    copy = copied(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    rows = len(stored["lm_head.weight"])
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        stored[name] = torch.cat([stored[name], stored[name][-1:]])
    replaced(copy / "delta", stored)
    config = json.loads((copy / "delta" / "config.json").read_text())
    (copy / "delta" / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 1}))
    names = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
    added = {name: rows - 3 + i for i, name in enumerate(names)}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    merge(copy, tmp_path / "llava")
    assert json.loads((tmp_path / "llava" / "added_tokens.json").read_text()) == added
    merged = load_model(MergedCheckpoint(tmp_path / "llava"), "cpu", "float32")
    assert merged.tokenizer.image == load_model(ModelParts(copy), "cpu", "float32").tokenizer.image


def test_a_merged_folder_knows_its_conversation(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava", "--template", "v1")
    assert load_model(MergedCheckpoint(tmp_path / "llava"), "cpu", "float32").template is V1
    assert load_model(MergedCheckpoint(tmp_path / "llava"), "cpu", "float32", "v0").template is V0
    assert load_model(ModelParts(parts_dir), "cpu", "float32").template is V0
    assert load_model(ModelParts(parts_dir), "cpu", "float32", "v1").template is V1


def test_the_inputs_stay_as_they_are(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    before = {file: file.read_bytes() for file in parts_dir.rglob("*") if file.is_file()}
    merge(parts_dir, tmp_path / "llava")
    assert {file: file.read_bytes() for file in parts_dir.rglob("*") if file.is_file()} == before


# What is refused, before a byte is written.


def refused(merge: Merge, parts_dir: Path, tmp_path: Path) -> str:
    said = merge(parts_dir, tmp_path / "llava", status=1)
    assert not (tmp_path / "llava").exists()
    assert not (tmp_path / "llava.partial").exists()
    return said


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
def test_a_base_of_another_shape(
    parts_dir: Path, tmp_path: Path, merge: Merge, shape: Shape, rows: int, said: str
) -> None:
    copy = copied(parts_dir, tmp_path)
    replaced(copy / "base", llama_tensors(shape, rows, torch.Generator().manual_seed(9), 0.2))
    message = refused(merge, copy, tmp_path)
    assert said in message
    assert "original LLaMA" in message


def test_base_and_delta_swapped(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    (copy / "base").rename(copy / "other")
    (copy / "delta").rename(copy / "base")
    (copy / "other").rename(copy / "delta")
    assert "base and delta are swapped" in refused(merge, copy, tmp_path)


def test_a_base_that_is_merged_already(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    replaced(copy / "base", naive_merge(parts_dir))
    assert "base is a merged LLaVA v0 in its authors' layout" in refused(merge, copy, tmp_path)


def test_a_base_that_is_a_difference_itself(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    rows = len(tensors(copy / "base")["lm_head.weight"])
    replaced(copy / "base", llama_tensors(Shape(), rows, torch.Generator().manual_seed(9), 0.1, norm=0.0))
    assert "base is a delta without a projector, as Vicuna's are" in refused(merge, copy, tmp_path)


def test_a_delta_that_is_merged_already(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    near = {
        name: value * 0.05 if name in tensors(parts_dir / "base") else value
        for name, value in tensors(parts_dir / "delta").items()
    }
    replaced(copy / "delta", near)
    replaced(copy / "delta", naive_merge(copy))
    assert "is not a delta" in refused(merge, copy, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_name_or_path": "lmsys/vicuna-13b-v1.1"}, "a vicuna"),
        ({"max_position_embeddings": 4096}, "Llama 2"),
        ({"rms_norm_eps": 1e-5}, "Llama 2"),
        ({"model_type": "gpt_neox"}, "nothing that is known"),
    ],
)
def test_a_base_whose_config_gives_it_away(
    parts_dir: Path, tmp_path: Path, merge: Merge, change: dict[str, object], said: str
) -> None:
    copy = copied(parts_dir, tmp_path)
    config = json.loads((copy / "base" / "config.json").read_text())
    (copy / "base" / "config.json").write_text(json.dumps(config | change))
    assert said in refused(merge, copy, tmp_path)


def test_a_delta_of_another_family(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    for kind in ("weight", "bias"):
        stored[f"model.mm_projector.0.{kind}"] = stored.pop(f"model.mm_projector.{kind}")
    replaced(copy / "delta", stored)
    assert "as LLaVA 1.5's" in refused(merge, copy, tmp_path)


def test_a_delta_without_its_projector(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    stored = {name: value for name, value in tensors(copy / "delta").items() if "mm_projector" not in name}
    replaced(copy / "delta", stored)
    assert "drops it, without a word" in refused(merge, copy, tmp_path)


def test_a_delta_whose_prompts_are_not_known(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    """As LLaVA-13b-delta-v0-science_qa, whose images have no markers."""
    copy = copied(parts_dir, tmp_path)
    added = json.loads((copy / "delta" / "added_tokens.json").read_text())
    (copy / "delta" / "added_tokens.json").write_text(json.dumps({"<im_patch>": added["<im_patch>"]}))
    assert "have no <im_start>" in refused(merge, copy, tmp_path)
    merge(copy, tmp_path / "llava", "--template", "v0")
    image = load_model(MergedCheckpoint(tmp_path / "llava"), "cpu", "float32").tokenizer.image
    assert (image.start, image.end) == (None, None)


def test_a_tokenizer_of_another_delta(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    added = json.loads((copy / "delta" / "added_tokens.json").read_text())
    shifted = {token: number + 1 for token, number in added.items()}
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(shifted))
    assert "has no row in the embedding" in refused(merge, copy, tmp_path)


def test_what_stands_beside_the_weights_is_looked_at_first(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    (copy / "vision" / "preprocessor_config.json").write_text('{"image_std": [1, 1, 0]}')
    assert "image_std" in refused(merge, copy, tmp_path)
    (copy / "vision" / "preprocessor_config.json").unlink()
    added = json.loads((copy / "delta" / "added_tokens.json").read_text())
    del added["<im_start>"]  # between the two others
    (copy / "delta" / "added_tokens.json").write_text(json.dumps(added))
    assert "without a gap" in merge(copy, tmp_path / "llava", "--template", "v0", status=1)
    assert not (tmp_path / "llava.partial").exists()


def test_a_vision_tower_that_is_none(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    shutil.rmtree(copy / "vision")
    shutil.copytree(copy / "base", copy / "vision")
    assert "vision is a LLaMA; the vision tower is openai/clip" in refused(merge, copy, tmp_path)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("base/config.json", "there is no config.json in"),
        ("delta/config.json", "there is no config.json in"),
        ("vision/config.json", "there is no config.json in"),
        ("delta/tokenizer.model", "no tokenizer.model in"),
        ("delta/added_tokens.json", "lists no <im_patch>"),
        ("vision/pytorch_model.bin", "no weights in"),
    ],
)
def test_a_missing_file(parts_dir: Path, tmp_path: Path, merge: Merge, file: str, said: str) -> None:
    copy = copied(parts_dir, tmp_path)
    (copy / file).unlink()
    message = refused(merge, copy, tmp_path)
    assert said in message
    assert str((copy / file).parent) in message


def test_a_missing_shard(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    (copy / "base" / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in refused(merge, copy, tmp_path)


def test_a_shard_that_lacks_what_the_index_says(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    file = copy / "base" / "pytorch_model-00002-of-00002.bin"
    shard = torch.load(file, weights_only=True)
    del shard["model.norm.weight"]
    torch.save(shard, file)
    assert f"{file} lacks model.norm.weight" in refused(merge, copy, tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_of_meta_s(parts_dir: Path, tmp_path: Path, merge: Merge, rank: int) -> None:
    copy = with_meta_s_base(parts_dir, tmp_path, 2)
    (copy / "base" / f"consolidated.0{rank}.pth").unlink()
    said = refused(merge, copy, tmp_path)
    assert "consolidated.00.pth" in said if rank == 0 else "is one missing?" in said


@pytest.mark.parametrize("form", ["bin", "old bin", "safetensors"])
@pytest.mark.parametrize("cut", [1, 5000])
def test_a_truncated_file(parts_dir: Path, tmp_path: Path, merge: Merge, form: str, cut: int) -> None:
    copy = copied(parts_dir, tmp_path)
    stored = tensors(copy / "delta")
    for file in copy.glob("delta/pytorch_model*"):
        file.unlink()
    file = copy / "delta" / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(stored, file)
    else:
        torch.save(stored, file, _use_new_zipfile_serialization=form == "bin")
    os.truncate(file, file.stat().st_size - cut)
    said = refused(merge, copy, tmp_path)
    assert str(file) in said
    assert "truncated" in said


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('/tmp/llava-serving-executed').touch()",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_checkpoint_that_would_execute(parts_dir: Path, tmp_path: Path, merge: Merge, new_format: bool) -> None:
    copy = copied(parts_dir, tmp_path)
    file = copy / "base" / "pytorch_model-00002-of-00002.bin"
    torch.save({"model.norm.weight": Exploit()}, file, _use_new_zipfile_serialization=new_format)
    said = refused(merge, copy, tmp_path)
    assert f"{file} cannot be read as weights" in said
    assert "weights_only" not in said
    assert not Path("/tmp/llava-serving-executed").exists()


def test_a_git_lfs_pointer(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    copy = copied(parts_dir, tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (copy / "base" / "pytorch_model-00002-of-00002.bin").write_bytes(pointer)
    assert "git lfs pull" in refused(merge, copy, tmp_path)


def test_too_little_disk(parts_dir: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "GB free" in refused(merge, parts_dir, tmp_path)


def test_an_output_that_is_not_empty(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "mine").touch()
    assert "not empty" in merge(parts_dir, tmp_path / "llava", status=1)
    assert [file.name for file in (tmp_path / "llava").iterdir()] == ["mine"]
    assert "is or holds the base" in merge(parts_dir, parts_dir / "base", status=1)


# Stopped, and started again.


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 MB of base and delta each."""
    return write_parts(
        tmp_path_factory.mktemp("large") / "parts_dir", Shape(hidden=768, intermediate=2048, layers=8, heads=8)
    )


SLOWLY = """
import sys, time
from llava_serving.tools import cli
from llava_serving.export import shard_writer
from llava_serving.weights.chunk_reader import RowChunk
shard_writer.plan.__defaults__ = (20_000_000,)
rows = RowChunk.rows
def slowly(*arguments):
    time.sleep(0.03)
    return rows(*arguments)
RowChunk.rows = slowly
sys.exit(cli.main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_merge_that_was_stopped_goes_on(large: Path, tmp_path: Path, how: signal.Signals) -> None:
    output, partial = tmp_path / "llava", tmp_path / "llava.partial"
    run = [sys.executable, "-c", SLOWLY, *command(large, output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)
    while len(list(partial.glob("*.safetensors"))) < 2:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(how)
    said = first.communicate()[1]
    assert not output.exists()
    if how != signal.SIGKILL:
        assert first.returncode == 130
        assert "the same command goes on" in said
    kept = {file.name: file.stat().st_mtime_ns for file in partial.glob("*.safetensors")}
    again = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "are there already" in again.stderr
    assert not partial.exists()
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(output.glob("*.writing"))
    assert_same(written(output), stock_names(large))


def test_two_merges_do_not_write_one_folder(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    (tmp_path / "llava").rename(tmp_path / "llava.partial")
    with (tmp_path / "llava.partial" / "llava_merge.json").open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        assert "another merge is writing" in merge(parts_dir, tmp_path / "llava", status=1)
    merge(parts_dir, tmp_path / "llava")


def test_another_merge_s_beginnings_are_not_gone_on_with(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    (tmp_path / "llava").rename(tmp_path / "llava.partial")
    assert "of other parts or settings" in merge(parts_dir, tmp_path / "llava", "--dtype", "bfloat16", status=1)
    merge(parts_dir, tmp_path / "llava")


def test_a_merge_that_was_killed_before_it_began(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "llava.partial").mkdir()
    (tmp_path / "llava.partial" / "llava_merge.json").touch()
    merge(parts_dir, tmp_path / "llava")
    assert_same(written(tmp_path / "llava"), stock_names(parts_dir))
    assert json.loads((tmp_path / "llava" / "llava_merge.json").read_text())["dtype"] == "float16"


MEMORY = """
import sys
from pathlib import Path
from llava_serving.tools import cli
assert cli.main() == 0
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
def test_memory_does_not_grow_with_the_model(parts_dir: Path, large: Path, tmp_path: Path) -> None:
    def peak_mib(parts: Path) -> float:
        run = [sys.executable, "-c", MEMORY, *command(parts, tmp_path / parts.parent.name)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
        return int(out.split()[-1]) / 1024

    # Sixteen pieces of up to a tensor, 3 MB each, for 400 MB that are read and written.
    assert peak_mib(large) - peak_mib(parts_dir) < 80
