"""Tensors read from files, compared with what the libraries wrote. A damaged file raises StartupError only."""

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_serving.errors import StartupError
from llava_serving.weights.storage.checkpoint import locate_tensors
from llava_serving.weights.storage.lazy_tensor import read_whole
from llava_serving.weights.storage.model_parallel import JoinedTensor, RotaryTensor
from llava_serving.weights.storage.stored_tensor import StoredTensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.bool)
FORMATS = st.sampled_from(["zip", "legacy", "safetensors"])


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    state_dict = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        numbers = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
        state_dict[name] = numbers.to(draw(st.sampled_from(DTYPES)))
    return state_dict


def write_file(stored: dict[str, torch.Tensor], file_format: str, folder: Path) -> Path:
    path = folder / ("file.safetensors" if file_format == "safetensors" else "file.bin")
    if file_format == "safetensors":
        save_file(stored, path)
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=file_format == "zip")
    return path


@given(stored=tensors(), file_format=FORMATS)
def test_saved_tensors_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], file_format: str
) -> None:
    located = locate_tensors(write_file(stored, file_format, tmp_path_factory.mktemp("file")))
    assert located.keys() == stored.keys()
    for name, value in stored.items():
        assert located[name].dtype == value.dtype
        assert torch.equal(read_whole(located[name]), value)


@given(stored=tensors(), file_format=FORMATS.filter(lambda file_format: file_format != "safetensors"))
def test_tensors_that_share_one_storage_are_read(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], file_format: str
) -> None:
    """Meta's release shares storages: each tensor is a range of a larger one."""
    base = torch.arange(20.0)
    stored = {name: base[i : i + 3 * i].view(3, i) for i, name in enumerate(stored, 1)}
    located = locate_tensors(write_file(stored, file_format, tmp_path_factory.mktemp("file")))
    for name, value in stored.items():
        assert torch.equal(read_whole(located[name]), value)


@given(stored=tensors(), file_format=FORMATS, data=st.data())
def test_a_damaged_file_is_read_or_raises_startup_error(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, torch.Tensor], file_format: str, data: st.DataObject
) -> None:
    path = write_file(stored, file_format, tmp_path_factory.mktemp("file"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(StartupError):  # every other exception fails the test
        for tensor in locate_tensors(path).values():
            read_whole(tensor)


def test_a_transposed_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not stored row by row"):
        locate_tensors(write_file({"transposed": torch.ones(2, 3).T}, "zip", tmp_path))


@given(rows=st.integers(1, 4), start=st.integers(0, 3), stop=st.integers(0, 3), dim=st.sampled_from([0, 1]))
def test_joined_ranks_and_rotary_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, start: int, stop: int, dim: int
) -> None:
    heads, head_dim = 4, 2 * rows
    whole = torch.arange(heads * head_dim * 8.0).view(heads * head_dim, 8)
    parts = {str(i): part.contiguous() for i, part in enumerate(whole.chunk(2, dim))}
    located = locate_tensors(write_file(parts, "zip", tmp_path_factory.mktemp("file")))
    joined = JoinedTensor([located["0"], located["1"]], dim)
    assert joined.shape == whole.shape
    start, stop = min(start, stop) * head_dim, (max(start, stop) + 1) * head_dim
    buffer = torch.empty(whole.numel() * 4, dtype=torch.uint8)
    assert torch.equal(joined.read(start, stop, buffer), whole[start:stop])
    # Row 2i of a head goes to i, and row 2i + 1 to half the head + i.
    order = [head * head_dim + 2 * (i % rows) + i // rows for head in range(heads) for i in range(head_dim)]
    rotary = RotaryTensor(joined, head_dim)
    assert torch.equal(rotary.read(start, stop, buffer), whole[order][start:stop])


def test_a_file_that_shrank_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    with pytest.raises(StartupError, match="ends at byte 10"):
        read_whole(StoredTensor(path, 4, torch.float32, (2,)))
