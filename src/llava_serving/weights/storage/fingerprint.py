"""Hashes that tell one folder of weights from another without reading all of its bytes."""

import hashlib
from pathlib import Path

from .checkpoint import weight_files

SAMPLES, SAMPLE_BYTES = 64, 4096


def fingerprint(folder: Path) -> dict[str, dict[str, object]]:
    """Returns the size of each file of weights and a hash of evenly spread samples.

    Samples are enough, because different weights differ everywhere.
    """
    return {
        file.name: {"bytes": file.stat().st_size, "sampled_sha256": _sampled_sha256(file)}
        for file in weight_files(folder)
    }


def text_file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each config and tokenizer file of the folder, over all of its bytes."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".jinja"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sampled_sha256(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
