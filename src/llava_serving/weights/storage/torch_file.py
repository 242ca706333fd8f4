"""Where the tensors of a `torch.save` file lie, in the zip format (torch 1.6 and later) and in the one before.

torch.load has to bring a file of the old format into memory whole; here only the pickle that describes the tensors is
read, by an unpickler that knows what tensors are made of and nothing else: a file can make it execute nothing
(torch/serialization.py `_legacy_load`, `_load`; torch/_utils.py `_rebuild_tensor_v2`).
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
from ...model_files import hint
from .stored_tensor import StoredTensor

ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER = 30  # bytes of a zip entry before its name; its last two numbers are the lengths of name and extra field
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def locate(path: Path) -> dict[str, StoredTensor]:
    """Each tensor by name. Raises StartupError unless the file holds named tensors, whole, and nothing else."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            described, offsets = _read_zip(path) if is_zip else _read_legacy(file)
        if not isinstance(described, dict):
            raise ValueError("no names")
        tensors = {
            name: _stored(path, name, tensor, offsets)
            for name, tensor in described.items()
            if isinstance(tensor, _Described)
        }
    except StartupError:
        raise
    except Exception as error:  # pickle and zipfile raise a dozen unrelated types for damaged files
        raise StartupError(f"{path} cannot be read as weights; {hint(path)}") from error
    size = path.stat().st_size
    for name, tensor in tensors.items():
        end = tensor.offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        if end > size:
            raise StartupError(f"{path} has {size:,} bytes, and {name} ends at byte {end:,}; {hint(path)}")
    return tensors


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Described:
    """A tensor as the pickle has it: `first` is its first element in its storage."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Makes _Described of tensors, and containers. Every other name in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor") from None

    def persistent_load(self, described: Any) -> _Storage:
        _, dtype, key, *_ = described
        return _Storage(str(key), dtype)


def _tensor(storage: _Storage, first: int, shape: Any, stride: Any, *_: Any) -> _Described:
    return _Described(storage, int(first), tuple(shape), tuple(stride))


def _parameter(tensor: _Described, *_: Any) -> _Described:
    return tensor


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


def _read_zip(path: Path) -> tuple[Any, dict[str, int]]:
    """The description, and where in the file each storage begins."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename: info for info in archive.infolist()}
        top = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
            raise StartupError(f"{path} was saved on a big-endian machine, which is not read")
        with archive.open(f"{top}data.pkl") as pickled:
            described = _Unpickler(pickled).load()
        offsets = {}
        for name, info in entries.items():
            if name.startswith(f"{top}data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("compressed")
                file.seek(info.header_offset)
                lengths = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
                offsets[name.removeprefix(f"{top}data/")] = info.header_offset + LOCAL_HEADER + sum(lengths)
        return described, offsets


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, int]]:
    """The same of the old format: pickles one after the other, then the storages, each after its length."""
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError("not torch's")
    _Unpickler(file).load()  # the protocol's version
    _Unpickler(file).load()  # sizes of numbers on the machine that saved it
    unpickler = _LegacyUnpickler(file)
    described = unpickler.load()
    keys = _Unpickler(file).load()
    offsets, offset = {}, file.tell()
    for key in keys:
        file.seek(offset)
        (count,) = struct.unpack("<q", file.read(8))
        offsets[str(key)] = offset + 8
        offset += 8 + count * unpickler.dtypes[str(key)].itemsize
    return described, offsets


class _LegacyUnpickler(_Unpickler):
    """Remembers the storages' dtypes, which tell how far each reaches."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def persistent_load(self, described: Any) -> _Storage:
        storage = super().persistent_load(described)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _stored(path: Path, name: str, tensor: _Described, offsets: dict[str, int]) -> StoredTensor:
    expected = [math.prod(tensor.shape[dim + 1 :]) for dim in range(len(tensor.shape))]
    # The stride of a dimension with one element, or of a tensor with none, means nothing.
    dims = zip(tensor.stride, expected, tensor.shape, strict=True)
    if 0 not in tensor.shape and any(stride != row_major for stride, row_major, size in dims if size > 1):
        raise StartupError(
            f"{name} in {path} is not stored row by row (stride {tensor.stride}, shape {tensor.shape}): "
            "save it again with .contiguous()"
        )
    dtype = tensor.storage.dtype
    return StoredTensor(path, offsets[tensor.storage.key] + tensor.first * dtype.itemsize, dtype, tensor.shape)
