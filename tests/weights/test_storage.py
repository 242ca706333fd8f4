"""Tensors found in files against the libraries that wrote them; damaged files tell, and tell nothing else."""

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_serving.errors import StartupError
from llava_serving.weights.storage.checkpoint import locate
from llava_serving.weights.storage.stored_tensor import JoinedTensor, RotaryTensor, StoredTensor, read_whole

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.bool)
FORMS = st.sampled_from(["zip", "old", "safetensors"])


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    made = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        numbers = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
        made[name] = numbers.to(draw(st.sampled_from(DTYPES)))
    return made


def written(stored: dict[str, torch.Tensor], form: str, folder: Path) -> Path:
    path = folder / ("file.safetensors" if form == "safetensors" else "file.bin")
    if form == "safetensors":
        save_file(stored, path)
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=form == "zip")
    return path


@given(stored=tensors(), form=FORMS)
def test_what_was_saved_is_read(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], form: str
) -> None:
    located = locate(written(stored, form, tmp_path_factory.mktemp("file")))
    assert located.keys() == stored.keys()
    for name, value in stored.items():
        assert located[name].dtype == value.dtype
        assert torch.equal(read_whole(located[name]), value)


@given(stored=tensors(), form=FORMS.filter(lambda form: form != "safetensors"))
def test_tensors_that_share_one_storage(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], form: str
) -> None:
    """As Meta's release has it: each tensor is a stretch of a larger one."""
    base = torch.arange(20.0)
    stored = {name: base[i : i + 3 * i].view(3, i) for i, name in enumerate(stored, 1)}
    located = locate(written(stored, form, tmp_path_factory.mktemp("file")))
    for name, value in stored.items():
        assert torch.equal(read_whole(located[name]), value)


@given(stored=tensors(), form=FORMS, data=st.data())
def test_a_damaged_file_is_told_or_read(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], form: str, data: st.DataObject
) -> None:
    path = written(stored, form, tmp_path_factory.mktemp("file"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(StartupError):  # whatever else it raises is not told
        for tensor in locate(path).values():
            read_whole(tensor)


def test_columns_of_a_matrix_are_not_its_rows(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not stored row by row"):
        locate(written({"turned": torch.ones(2, 3).T}, "zip", tmp_path))


@given(rows=st.integers(1, 4), start=st.integers(0, 3), stop=st.integers(0, 3), dim=st.sampled_from([0, 1]))
def test_joined_and_rotary_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: int, start: int, stop: int, dim: int
) -> None:
    heads, head_dim = 4, 2 * rows
    whole = torch.arange(heads * head_dim * 8.0).view(heads * head_dim, 8)
    parts = {str(i): part.contiguous() for i, part in enumerate(whole.chunk(2, dim))}
    located = locate(written(parts, "zip", tmp_path_factory.mktemp("file")))
    joined = JoinedTensor([located["0"], located["1"]], dim)
    assert joined.shape == whole.shape
    start, stop = min(start, stop) * head_dim, (max(start, stop) + 1) * head_dim
    buffer = torch.empty(whole.numel() * 4, dtype=torch.uint8)
    assert torch.equal(joined.read(start, stop, buffer), whole[start:stop])
    # Row 2i of a head goes to i, row 2i + 1 to half the head + i.
    order = [head * head_dim + 2 * (i % rows) + i // rows for head in range(heads) for i in range(head_dim)]
    rotary = RotaryTensor(joined, head_dim)
    assert torch.equal(rotary.read(start, stop, buffer), whole[order][start:stop])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    with pytest.raises(StartupError, match="ends at byte 10"):
        read_whole(StoredTensor(path, 4, torch.float32, (2,)))
