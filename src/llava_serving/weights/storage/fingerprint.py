"""What tells one folder of weights from another without reading all of it."""

import hashlib
from pathlib import Path

from .checkpoint import weight_files

SAMPLES, SAMPLE_BYTES = 64, 4096


def fingerprint(folder: Path) -> dict[str, dict[str, object]]:
    """Of each file of weights its size and a hash of samples, evenly spread: other weights differ everywhere."""
    return {
        file.name: {"bytes": file.stat().st_size, "sampled_sha256": _sampled(file)} for file in weight_files(folder)
    }


def texts_beside(folder: Path) -> dict[str, str]:
    """Of each config and tokenizer file beside the weights a hash of all of it."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".jinja"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sampled(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
