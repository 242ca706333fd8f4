"""Where the tensors of a safetensors file lie (huggingface/safetensors README, "Format")."""

import json
import math
from pathlib import Path

import torch

from ...errors import StartupError
from ...model_files import hint
from .stored_tensor import StoredTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000  # as the library has it


def locate(path: Path) -> dict[str, StoredTensor]:
    """Each tensor by name, from the header alone. Raises StartupError unless the whole file is there."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - LENGTH_BYTES):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, LENGTH_BYTES + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{path} cannot be read as safetensors; {hint(path)}") from error
    end = max([LENGTH_BYTES + length, *(LENGTH_BYTES + length + e["data_offsets"][1] for e in header.values())])
    if end != size:
        raise StartupError(f"{path} has {size:,} bytes, and its header speaks of {end:,}; {hint(path)}")
    return tensors


def _stored(path: Path, data: int, entry: dict[str, list[int] | str]) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    stored = StoredTensor(path, data + begin, DTYPES[str(entry["dtype"])], tuple(int(n) for n in entry["shape"]))
    if end - begin != math.prod(stored.shape) * stored.dtype.itemsize:
        raise ValueError("size and shape disagree")
    return stored
