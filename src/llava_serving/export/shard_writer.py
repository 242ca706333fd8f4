"""Writes merged tensors into safetensors files, one shard at a time.

A shard is written under a temporary name, flushed to the disk and renamed, so a file with its final name is complete.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..weights.chunk_reader import next_tensor_chunks, read_chunks
from ..weights.delta import MergedTensor
from ..weights.finite_values import NonFiniteCounts, NonFiniteWeights
from .direct_file import DirectFile

# A killed merge loses at most one shard. transformers reads any number of shards.
SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16"}
TEMPORARY_SUFFIX = ".writing"


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header, then its tensors in order. `num_bytes` includes the header."""

    file: str
    header: bytes
    merged_tensors: Mapping[str, MergedTensor]
    num_bytes: int


def plan_shards(
    merged_tensors: Mapping[str, MergedTensor], dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> list[Shard]:
    """Returns the shards of all tensors. None has more than `shard_bytes` of tensors, unless one tensor has more."""
    groups: list[dict[str, MergedTensor]] = [{}]
    group_bytes = 0
    for name, tensor in merged_tensors.items():
        tensor_bytes = _num_bytes(tensor, dtype)
        if groups[-1] and group_bytes + tensor_bytes > shard_bytes:
            groups.append({})
            group_bytes = 0
        groups[-1][name] = tensor
        group_bytes += tensor_bytes
    return [
        _shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group, dtype)
        for number, group in enumerate(groups, 1)
    ]


def index_json(shards: Sequence[Shard]) -> str:
    """Returns the content of model.safetensors.index.json."""
    total_size = sum(shard.num_bytes - len(shard.header) for shard in shards)
    weight_map = {name: shard.file for shard in shards for name in shard.merged_tensors}
    return json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2) + "\n"


def missing_shards(shards: Sequence[Shard], directory: Path) -> list[Shard]:
    """Returns the shards that are not complete in `directory`."""
    return [shard for shard in shards if not _is_complete(directory / shard.file, shard)]


def write_shards(shards: Sequence[Shard], directory: Path, dtype: torch.dtype, on_write: Callable[[int], None]) -> None:
    """Writes all `shards` into `directory`, and calls `on_write` with the number of bytes of each header and chunk.

    Raises StartupError if a part cannot be read, and NonFiniteWeights at the end if a value is not finite. A shard with
    such a value never gets its final name.
    """
    counts = NonFiniteCounts()
    chunks = read_chunks(item for shard in shards for item in shard.merged_tensors.items())
    for shard in shards:
        path = directory / (shard.file + TEMPORARY_SUFFIX)
        is_finite = True
        with DirectFile(path) as file:
            file.write(shard.header)
            on_write(len(shard.header))
            for chunk in (chunk for _ in shard.merged_tensors for chunk in next_tensor_chunks(chunks)):
                rows = chunk.rows(dtype)
                is_finite &= counts.add(chunk, rows)
                content = rows.contiguous().flatten().view(torch.uint8)
                file.write(content.numpy().data)
                on_write(len(content))
        if is_finite:
            path.rename(directory / shard.file)
    if counts:
        raise NonFiniteWeights(f"the merged model would hold {counts}")
    fsync(directory)


def fsync(path: Path) -> None:
    """Flushes to the disk a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_complete(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.num_bytes


def _shard(file: str, merged_tensors: Mapping[str, MergedTensor], dtype: torch.dtype) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in merged_tensors.items():
        start, end = end, end + _num_bytes(tensor, dtype)
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # safetensors: the tensors begin at a multiple of 8 bytes
    header = len(header).to_bytes(8, "little") + header
    return Shard(file, header, merged_tensors, len(header) + end)


def _num_bytes(tensor: MergedTensor, dtype: torch.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize
