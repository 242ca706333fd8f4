"""The tensors of a checkpoint folder by name: Hugging Face's layouts or Meta's release, whatever the file format.

Only headers are read here, each file's once; that every tensor lies inside its file is known before any is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import StartupError
from ...model_files import hint, read_json
from . import meta_layout, safetensors_file, torch_file
from .stored_tensor import StoredTensor, Tensor, num_bytes

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
LOOKED_FOR = f"{', '.join(SINGLE_FILES)}, each whole or with an index, or Meta's {meta_layout.PATTERN}"


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors, and the files they lie in."""

    directory: Path
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or what Meta's params.json and the tensors say in its words. Raises StartupError."""
        if meta_layout.shards(self.directory):
            return meta_layout.config(self.directory, self.tensors)
        return read_json(self.directory / "config.json")

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(tensor) for tensor in self.tensors.values())


def open_checkpoint(directory: Path) -> Checkpoint:
    """Raises StartupError that names the missing, damaged or truncated file."""
    files, expected = _files(directory)
    located = [locate(file) for file in files]
    if meta_layout.shards(directory):
        return Checkpoint(directory, meta_layout.tensors(directory, located), tuple(files))
    tensors: dict[str, Tensor] = {}
    for file, stored in zip(files, located, strict=True):
        # A shard may hold more than the index says; what it says is what counts.
        tensors |= {name: t for name, t in stored.items() if expected is None or expected.get(name) == file.name}
    for name, shard in (expected or {}).items():
        if name not in tensors:
            path = directory / shard
            raise StartupError(f"{path} lacks {name}, which the index says it holds; {hint(path)}")
    return Checkpoint(directory, tensors, tuple(files))


def weight_files(directory: Path) -> list[Path]:
    """The files of weights of a folder, from its index if it has one. Raises StartupError if one is not there."""
    return _files(directory)[0]


def locate(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name."""
    return safetensors_file.locate(path) if path.suffix == ".safetensors" else torch_file.locate(path)


def _files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of weights, and each tensor's file by name where an index says so."""
    if not directory.is_dir():
        raise StartupError(f"{directory} is not a folder")
    if meta := meta_layout.shards(directory):
        return meta, None
    for single in SINGLE_FILES:
        index = directory / f"{single}.index.json"
        if index.is_file():
            expected = read_json(index).get("weight_map")
            if not isinstance(expected, dict) or not expected:
                raise StartupError(f"{index} has no weight_map; {hint(index)}")
            files = sorted({directory / file for file in expected.values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise StartupError(f"the index in {directory} names shards that are not there: {', '.join(missing)}")
            return files, expected
        if (directory / single).is_file():
            return [directory / single], None
    raise StartupError(f"no weights in {directory}: looked for {LOOKED_FOR}")
