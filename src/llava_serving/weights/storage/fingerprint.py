"""Hashes that tell one folder of weights from another without reading all of its bytes."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from .checkpoint import locate_tensors, weight_files
from .lazy_tensor import num_bytes

SAMPLES_PER_TENSOR, SAMPLE_BYTES = 8, 4096


def fingerprint(folder: Path) -> dict[str, dict[str, object]]:
    """Returns the size of each file of weights, and a hash of its header and of samples of every tensor.

    A tensor with other values differs everywhere, so its samples differ. Raises StartupError if a file is damaged.
    """
    return {
        file.name: {"bytes": file.stat().st_size, "sampled_sha256": _sampled_sha256(file)}
        for file in weight_files(folder)
    }


def folders_digest(folders: Iterable[Path], *options: object) -> str:
    """Returns 16 hexadecimal digits: others if a weight, config or tokenizer file of `folders` or an option differs.

    The paths of the folders do not matter. `options` are JSON values. Raises StartupError if a file is damaged.
    """
    files = [[fingerprint(folder), _text_file_hashes(folder)] for folder in folders]
    return hashlib.sha256(json.dumps([*files, *options]).encode()).hexdigest()[:16]


def _text_file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each config and tokenizer file of the folder, over all of its bytes."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".jinja"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sampled_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start, stop in _sampled_ranges(path):
            file.seek(start)
            digest.update(file.read(stop - start))
    return digest.hexdigest()


def _sampled_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """Yields the byte ranges to hash: all bytes before and after the tensors, and samples of each tensor.

    The bytes after the tensors of a zip file are its directory, which has a checksum of every tensor.
    """
    tensors = sorted((tensor.offset, tensor.offset + num_bytes(tensor)) for tensor in locate_tensors(path).values())
    size = path.stat().st_size
    yield 0, tensors[0][0] if tensors else size
    for start, stop in tensors:
        last = max(start, stop - SAMPLE_BYTES)
        for sample in range(SAMPLES_PER_TENSOR):
            begin = start + (last - start) * sample // (SAMPLES_PER_TENSOR - 1)
            yield begin, min(begin + SAMPLE_BYTES, stop)
    yield max((stop for _, stop in tensors), default=size), size
