"""Merged tensors into safetensors files: streamed, durable, and resumed shard by shard.

A shard is written under a temporary name, flushed to the disk and renamed: a file by its own name is whole.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..weights.chunk_reader import RowChunk, read_chunks
from ..weights.delta import MergedTensor
from .direct_file import DirectFile

# What is lost at most when a merge is killed; transformers reads any number of them.
SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16"}
TEMPORARY = ".writing"


@dataclass(frozen=True)
class Shard:
    """One file: its header, then its tensors in order."""

    file: str
    header: bytes
    merged_tensors: Mapping[str, MergedTensor]
    num_bytes: int  # header included


def plan(merged_tensors: Mapping[str, MergedTensor], dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The files of all `merged_tensors`, none above `shard_bytes` unless one tensor is."""
    groups: list[dict[str, MergedTensor]] = [{}]
    filled = 0
    for name, total in merged_tensors.items():
        size = _size(total, dtype)
        if groups[-1] and filled + size > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = total
        filled += size
    return [
        _shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group, dtype)
        for number, group in enumerate(groups, 1)
    ]


def index(shards: Sequence[Shard]) -> str:
    """What model.safetensors.index.json says of them."""
    total = sum(shard.num_bytes - len(shard.header) for shard in shards)
    weight_map = {name: shard.file for shard in shards for name in shard.merged_tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def missing(shards: Sequence[Shard], directory: Path) -> list[Shard]:
    """Those that an earlier merge into `directory` has not finished."""
    return [shard for shard in shards if not _is_whole(directory / shard.file, shard)]


def write(shards: Sequence[Shard], directory: Path, dtype: torch.dtype, written: Callable[[int], None]) -> None:
    """Writes all `shards`; `written` is told the bytes as they go. Raises StartupError where a part cannot be read."""
    stream = read_chunks(item for shard in shards for item in shard.merged_tensors.items())
    for shard in shards:
        path = directory / (shard.file + TEMPORARY)
        file = DirectFile(path)
        try:
            file.write(shard.header)
            for piece in _of(shard, stream):
                rows = piece.rows(dtype).contiguous().flatten().view(torch.uint8)
                file.write(rows.numpy().data)
                written(len(rows))
            file.close()
        finally:
            file.abandon()
        path.rename(directory / shard.file)
    flush(directory)


def flush(path: Path) -> None:
    """Makes a file's content last, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _of(shard: Shard, stream: Iterator[RowChunk]) -> Iterator[RowChunk]:
    """The pieces of one shard, which are next in the stream."""
    left = sum(math.prod(total.first.shape) for total in shard.merged_tensors.values())
    while left:
        piece = next(stream)
        yield piece
        left -= piece.first.numel()


def _is_whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.num_bytes


def _shard(file: str, merged_tensors: Mapping[str, MergedTensor], dtype: torch.dtype) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, total in merged_tensors.items():
        start, end = end, end + _size(total, dtype)
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(total.first.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8 bytes
    header = len(header).to_bytes(8, "little") + header
    return Shard(file, header, merged_tensors, len(header) + end)


def _size(total: MergedTensor, dtype: torch.dtype) -> int:
    return math.prod(total.first.shape) * dtype.itemsize
