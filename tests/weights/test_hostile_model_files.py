"""Model files that try to run code or to take all memory."""

import io
import json
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from llava_serving.errors import StartupError
from llava_serving.weights.merged_checkpoint import empty_merged_model
from llava_serving.weights.storage.torch_file import LEGACY_MAGIC, locate_tensors

FEW_BYTES = 4 * 2**20
# Stores None in the unpickler's table at index 2**24, for which the unpickler in C allocates 256 MB.
LARGE_INDEX = b"\x80\x02Nr" + (2**24).to_bytes(4, "little") + b"."


def write_zip(path: Path, pickled: bytes, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
    return path


def refuse_in_few_bytes(path: Path) -> None:
    """Asserts that the file is refused, and that this takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(StartupError, match="cannot be read as weights"):
            locate_tensors(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < FEW_BYTES


def test_a_compressed_pickle_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "model.bin", pickle.dumps({"a": bytes(2**26)}), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    refuse_in_few_bytes(bomb)


def test_a_large_index_in_a_pickle_takes_no_memory(tmp_path: Path) -> None:
    refuse_in_few_bytes(write_zip(tmp_path / "zip.bin", LARGE_INDEX, zipfile.ZIP_STORED))
    old = tmp_path / "old.bin"
    old.write_bytes(pickle.dumps(LEGACY_MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + LARGE_INDEX)
    refuse_in_few_bytes(old)


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
@pytest.mark.parametrize("module", ["builtins", "os", "torch", "torch._utils", "collections"])
def test_a_pickle_gets_no_function_but_those_of_tensors(tmp_path: Path, module: str, name: str) -> None:
    pickled = f"c{module}\n{name}\n(S'1'\ntR.".encode()
    refuse_in_few_bytes(write_zip(tmp_path / "model.bin", pickled, zipfile.ZIP_STORED))


def test_code_beside_a_merged_checkpoint_never_runs(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers imports the module that `auto_map` names if a person at a terminal agrees."""
    folder = shutil.copytree(merged, tmp_path / "model")
    (folder / "hostile.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\n")
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    for model_type in ("llava", "hostile"):
        hostile = config | {"model_type": model_type, "auto_map": {"AutoConfig": "hostile.Config"}}
        (folder / "config.json").write_text(json.dumps(hostile))
        if model_type == "llava":
            empty_merged_model(folder)
        else:
            with pytest.raises(StartupError):
                empty_merged_model(folder)
    assert not (tmp_path / "executed").exists()
