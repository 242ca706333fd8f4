"""The tensors of a checkpoint folder by name, in Hugging Face's layouts or Meta's, whatever the file format.

Opening reads each file's header once. It finds missing and truncated files before any tensor is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import StartupError
from ...model_files import damage_hint, missing_hint, read_json
from . import meta_layout, safetensors_file, torch_file
from .lazy_tensor import LazyTensor, num_bytes
from .stored_tensor import StoredTensor

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
EXPECTED_FILES = f"{', '.join(SINGLE_FILES)}, each whole or with an index, or Meta's {meta_layout.PATTERN}"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, and the files that hold them."""

    directory: Path
    tensors: Mapping[str, LazyTensor]
    files: tuple[Path, ...]
    is_meta_layout: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or the same keys from Meta's params.json and the tensors. Raises StartupError."""
        if self.is_meta_layout:
            return meta_layout.config(self.directory, self.tensors)
        return read_json(self.directory / "config.json")

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(tensor) for tensor in self.tensors.values())


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a folder. Raises StartupError that names the missing, damaged or truncated file."""
    files, weight_map = _find_files(directory)
    shards = [locate_tensors(file) for file in files]
    if files[0].match(meta_layout.PATTERN):
        return Checkpoint(directory, meta_layout.join_ranks(directory, shards), tuple(files), is_meta_layout=True)
    tensors: dict[str, LazyTensor] = {}
    for file, shard in zip(files, shards, strict=True):
        # A shard may hold more tensors than the index lists. Only listed tensors count.
        tensors |= {name: t for name, t in shard.items() if weight_map is None or weight_map.get(name) == file.name}
    for name, shard_name in (weight_map or {}).items():
        if name not in tensors:
            path = directory / shard_name
            raise StartupError(f"{path} lacks {name}, which the index says it holds; {damage_hint(path)}")
    return Checkpoint(directory, tensors, tuple(files))


def weight_files(directory: Path) -> list[Path]:
    """Returns the files of weights, from the index if there is one. Raises StartupError if one is missing."""
    return _find_files(directory)[0]


def locate_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file by name. Raises StartupError if it is damaged or truncated."""
    if path.suffix == ".safetensors":
        return safetensors_file.locate_tensors(path)
    return torch_file.locate_tensors(path)


def _find_files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Returns the files of weights and, if an index lists it, the file of each tensor."""
    if not directory.is_dir():
        raise StartupError(f"{directory} is not a folder")
    if meta := meta_layout.shards(directory):
        return meta, None
    for single in SINGLE_FILES:
        index = directory / f"{single}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise StartupError(f"{index} has no weight_map; {damage_hint(index)}")
            return _shard_files(index, weight_map), weight_map
        if (directory / single).is_file():
            return [directory / single], None
    raise StartupError(f"no weights in {directory}: looked for {EXPECTED_FILES}{_missing_weights_hint(directory)}")


def _shard_files(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    names = sorted(set(map(str, weight_map.values())))
    if outside := [name for name in names if Path(name).name != name]:
        raise StartupError(f"{index} names {outside[0]!r}, which is not a file of this folder; {damage_hint(index)}")
    files = [index.parent / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        listed = ", ".join(file.name for file in missing)
        raise StartupError(
            f"the index in {index.parent} names shards that are not there: {listed}{missing_hint(missing[0])}"
        )
    return files


def _missing_weights_hint(directory: Path) -> str:
    """Returns the end of the message about a folder without weights: dangling links, or shards without an index."""
    for single in SINGLE_FILES:
        for path in (directory / single, directory / f"{single}.index.json"):
            if hint := missing_hint(path):
                return hint
        stem, suffix = single.rsplit(".", 1)
        if shards := sorted(file.name for file in directory.glob(f"{stem}-*-of-*.{suffix}")):
            return f"; {shards[0]} is a shard, and the index of the shards, {single}.index.json, is missing"
    return ""
