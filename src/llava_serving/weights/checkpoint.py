"""Reads the tensors of a checkpoint folder by name: `.bin` or safetensors, one file or shards with an index.

Nothing is executed (`weights_only=True`), files are memory-mapped, and at most one shard is open at a time, so that
reading never holds a second copy of a model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import StartupError
from ..files import hint, read_json

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


class Checkpoint:
    """The tensors of one folder. Iterate `names` in order: shards are then opened once each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file_of = _weight_map(directory)
        self._open_file: str | None = None
        self._shard: Mapping[str, torch.Tensor] = {}
        self.names: tuple[str, ...] = tuple(sorted(self._file_of, key=lambda name: (self._file_of[name], name)))

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, on the CPU, still on its memory map. Raises StartupError for a broken file."""
        file = self._file_of[name]
        if file != self._open_file:
            self._shard = _open_shard(self.directory / file)
            self._open_file = file
        try:
            return self._shard[name]
        except KeyError:
            raise StartupError(f"{self.directory / file} lacks {name}, which the index says it holds") from None


class _Safetensors(Mapping[str, torch.Tensor]):
    """safetensors reads a tensor when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names: list[str] = list(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: torch.Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _weight_map(directory: Path) -> dict[str, str]:
    """Tensor name to file name."""
    for single in SINGLE_FILES:
        index = directory / f"{single}.index.json"
        if index.is_file():
            files: dict[str, str] = read_json(index).get("weight_map", {})
            missing = sorted({file for file in files.values() if not (directory / file).is_file()})
            if missing:
                raise StartupError(f"{index} names shards that are not there: {', '.join(missing)}")
            return files
        if (directory / single).is_file():
            return dict.fromkeys(_open_shard(directory / single), single)
    raise StartupError(
        f"no weights in {directory}: looked for {' and '.join(SINGLE_FILES)}, each whole or with an index"
    )


def _open_shard(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _Safetensors(path)
        shard: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        return shard
    except Exception as error:  # torch and safetensors raise a dozen unrelated types for damaged files
        # Their text stays in the log: torch's recommends weights_only=False, which executes what the file holds.
        raise StartupError(f"{path} cannot be read as weights; {hint(path)}") from error


def _is_zip(path: Path) -> bool:
    """Only torch's zip format (since 1.6) can be memory-mapped; older files are read whole."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
