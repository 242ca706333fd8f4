"""The positions of tensors in a safetensors file, from its header (huggingface/safetensors README, "Format").

The library reads the same header, but returns no positions (see stored_tensor.py for why they are needed).
"""

import json
from pathlib import Path

import torch

from ...errors import StartupError
from ...model_files import damage_hint
from .lazy_tensor import num_bytes
from .stored_tensor import StoredTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's limit


def locate_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns each tensor by name. Raises StartupError unless the whole file is there."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        data_start = LENGTH_BYTES + length
        tensors = {name: _stored_tensor(path, data_start, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{path} cannot be read as safetensors; {damage_hint(path)}") from error
    end = max([data_start, *(data_start + entry["data_offsets"][1] for entry in header.values())])
    if end != size:
        raise StartupError(f"{path} has {size:,} bytes, and its header says {end:,}; {damage_hint(path)}")
    return tensors


def _stored_tensor(path: Path, data_start: int, entry: dict[str, list[int] | str]) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    stored = StoredTensor(path, data_start + begin, DTYPES[str(entry["dtype"])], shape)
    if end - begin != num_bytes(stored):
        raise ValueError("size and shape disagree")
    return stored
