"""The positions of tensors in a `torch.save` file, of the zip format (since torch 1.6) or of the older one.

`torch.load` cannot map the older format: the sum of two files of 252 MB took 652 MB and 1.3 s, and 172 MB and 0.7 s
with the positions. Only the pickle that describes the tensors is read here. The unpickler knows what tensors are made
of and nothing else, so a file can execute nothing (torch/serialization.py `_legacy_load`, `_load`; torch/_utils.py
`_rebuild_tensor_v2`).
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ...errors import StartupError
from ...model_files import damage_hint
from .lazy_tensor import num_bytes
from .stored_tensor import StoredTensor

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The bytes of a zip entry before its name. The last two numbers are the lengths of the name and of the extra field.
LOCAL_HEADER_BYTES = 30
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def locate_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns each tensor by name. Raises StartupError unless the whole file is there and holds tensors by name."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            file.seek(0)
            state_dict, storage_offsets = _read_zip(path) if is_zip else _read_legacy(file)
        if not isinstance(state_dict, dict):
            raise ValueError("no names")
        tensors = {
            name: _stored_tensor(path, name, tensor, storage_offsets)
            for name, tensor in state_dict.items()
            if isinstance(tensor, _PickledTensor)
        }
    except (StartupError, MemoryError):
        raise
    except Exception as error:  # pickle and zipfile raise a dozen unrelated types for damaged files
        raise StartupError(f"{path} cannot be read as weights; {damage_hint(path)}") from error
    size = path.stat().st_size
    for name, tensor in tensors.items():
        end = tensor.offset + num_bytes(tensor)
        if end > size:
            raise StartupError(f"{path} has {size:,} bytes, and {name} ends at byte {end:,}; {damage_hint(path)}")
    return tensors


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _PickledTensor:
    """A tensor as the pickle describes it. `storage_offset` counts elements."""

    storage: _Storage
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle._Unpickler):
    """Builds containers and _PickledTensor. Refuses every other name in the pickle.

    It is the unpickler that is written in Python. The one in C allocates a table as large as the largest index in the
    pickle, so that 5 bytes of a file take 64 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor") from None

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(str(key), dtype)


def _rebuild_tensor(storage: _Storage, storage_offset: int, shape: Any, stride: Any, *_: Any) -> _PickledTensor:
    return _PickledTensor(storage, int(storage_offset), tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: _PickledTensor, *_: Any) -> _PickledTensor:
    return tensor


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


def _read_zip(path: Path) -> tuple[Any, dict[str, int]]:
    """Returns the unpickled state dict and the byte offset of each storage."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename: info for info in archive.infolist()}
        # torch compresses nothing. A compressed pickle of 1 MB can hold 1 GB.
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("compressed")
        top = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise StartupError(f"{path} was saved on a big-endian machine, which is not supported")
        with archive.open(f"{top}data.pkl") as pickled:
            state_dict = _Unpickler(pickled).load()
        offsets = {}
        for name, info in entries.items():
            if name.startswith(f"{top}data/"):
                file.seek(info.header_offset)
                lengths = struct.unpack("<HH", file.read(LOCAL_HEADER_BYTES)[-4:])
                offsets[name.removeprefix(f"{top}data/")] = info.header_offset + LOCAL_HEADER_BYTES + sum(lengths)
        return state_dict, offsets


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, int]]:
    """Returns the same from a file of the older format: several pickles, then each storage after its length."""
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError("not torch's")
    _Unpickler(file).load()  # the protocol's version
    _Unpickler(file).load()  # sizes of numbers on the machine that saved the file
    unpickler = _LegacyUnpickler(file)
    state_dict = unpickler.load()
    keys = _Unpickler(file).load()
    offsets, offset = {}, file.tell()
    for key in keys:
        file.seek(offset)
        (count,) = struct.unpack("<q", file.read(8))
        offsets[str(key)] = offset + 8
        offset += 8 + count * unpickler.dtypes[str(key)].itemsize
    return state_dict, offsets


class _LegacyUnpickler(_Unpickler):
    """Remembers the dtype of each storage, from which the size of the storage follows."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _stored_tensor(path: Path, name: str, tensor: _PickledTensor, storage_offsets: dict[str, int]) -> StoredTensor:
    row_major = [math.prod(tensor.shape[dim + 1 :]) for dim in range(len(tensor.shape))]
    # The stride of a dimension with one element, or of a tensor without elements, means nothing.
    dims = zip(tensor.stride, row_major, tensor.shape, strict=True)
    if 0 not in tensor.shape and any(stride != expected for stride, expected, size in dims if size > 1):
        raise StartupError(
            f"{name} in {path} is not stored row by row (stride {tensor.stride}, shape {tensor.shape}): "
            "save it again with .contiguous()"
        )
    dtype = tensor.storage.dtype
    offset = storage_offsets[tensor.storage.key] + tensor.storage_offset * dtype.itemsize
    return StoredTensor(path, offset, dtype, tensor.shape)
