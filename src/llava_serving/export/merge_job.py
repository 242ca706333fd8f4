"""A merged folder from base, delta and vision tower: whole under its own name, or not there at all.

Everything is written into `<output>.partial`, beside it, and renamed at the end. A merge that was killed goes on where
its last whole shard ended when it is started again.
"""

import fcntl
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from ..errors import StartupError
from ..inputs.clip_preprocessor import ClipPreprocessor, load_preprocessor
from ..inputs.templates import Template
from ..model_files import read_json
from ..weights.parts import OpenedParts, choose_template, open_parts
from ..weights.storage.fingerprint import fingerprint
from ..weights.tensor_names import interchange_name
from .shard_writer import Shard, flush, index, missing, plan, write

RECORD = "llava_merge.json"
ROOM_BESIDE = 64 * 1024 * 1024  # for tokenizer, configs and the file system's own


@dataclass(frozen=True)
class Job:
    """A merge that has been found possible."""

    parts: OpenedParts
    preprocessor: ClipPreprocessor
    folders: dict[str, Path]
    output: Path
    dtype: torch.dtype
    template: Template
    shards: list[Shard]

    @property
    def partial(self) -> Path:
        return self.output.with_name(self.output.name + ".partial")

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def num_bytes_left(self) -> int:
        return sum(shard.num_bytes for shard in missing(self.shards, self.partial))


def prepare(base: Path, delta: Path, vision: Path, output: Path, dtype: torch.dtype, template: str = "auto") -> Job:
    """Raises StartupError, before anything is written, for what could only fail later."""
    folders = {"base": base, "delta": delta, "vision": vision}
    output = output.absolute()
    _check_output(output, folders)
    parts = open_parts(base, delta, vision)
    _check_added(parts)
    preprocessor = load_preprocessor(vision, parts.architecture.image_size)
    merged_tensors = {interchange_name(name): total for name, total in parts.merged_tensors.items()}
    shards = plan(merged_tensors, dtype)
    job = Job(parts, preprocessor, folders, output, dtype, choose_template(template, parts.added), shards)
    _check_partial(job)
    _check_room(job)
    return job


def run(job: Job, written: Callable[[int], None]) -> None:
    """Writes the folder. `written` is told the bytes of tensors as they go. Raises StartupError."""
    job.partial.mkdir(parents=True, exist_ok=True)
    with (job.partial / RECORD).open("a+", encoding="utf-8") as record:
        _lock(record, job)
        if not record.tell():  # else it is the same: this merge goes on
            record.write(json.dumps(_record(job), indent=2) + "\n")
            record.flush()
        with ThreadPoolExecutor(1, "beside") as beside:
            others = beside.submit(_write_beside, job)
            write(missing(job.shards, job.partial), job.partial, job.dtype, written)
            others.result()
        for file in job.partial.iterdir():
            flush(file)
        flush(job.partial)
        job.partial.rename(job.output)
    flush(job.output.parent)


def _write_beside(job: Job) -> None:
    # Here, because transformers takes seconds to import, during which the weights are on their way.
    from .hf_folder import write_beside

    tokenizer = job.folders["delta"] / "tokenizer.model"
    write_beside(job.parts, job.preprocessor, job.dtype, job.template, tokenizer, job.partial)
    (job.partial / "model.safetensors.index.json").write_text(index(job.shards), "utf-8")


def _check_output(output: Path, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        if output == folder.absolute() or output in folder.absolute().parents:
            raise StartupError(f"the output {output} is or holds the {name}; choose another folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StartupError(f"the output {output} is there and not empty; choose another folder, or remove it first")


def _check_added(parts: OpenedParts) -> None:
    """A fast tokenizer numbers added tokens without gaps."""
    rows, first = parts.architecture.text["vocab_size"], parts.text.vocab_size()
    ids = sorted(i for i in parts.added.values() if i < rows)
    if ids != list(range(first, first + len(ids))):
        raise StartupError(
            f"the added tokens are {parts.added}: below {rows}, the rows of the embedding, they should go on from "
            f"{first} without a gap"
        )


def _check_partial(job: Job) -> None:
    record = job.partial / RECORD
    begun = record.is_file() and record.stat().st_size
    if begun and read_json(record) == _record(job):
        return
    if begun or (job.partial.exists() and any(file != record for file in job.partial.iterdir())):
        raise StartupError(f"{job.partial} holds an unfinished merge of other parts or settings; remove it first")


def _check_room(job: Job) -> None:
    place = next(folder for folder in job.output.parents if folder.exists())
    half = sum(file.stat().st_size for file in job.partial.glob("*.writing")) if job.partial.exists() else 0
    free, needed = shutil.disk_usage(place).free + half, job.num_bytes_left + ROOM_BESIDE
    if free < needed:
        raise StartupError(
            f"{place} has {free / 1e9:.1f} GB free, and the merged model needs {needed / 1e9:.1f} GB; "
            "free some, or choose an output on another disk"
        )


def _lock(record: IO[str], job: Job) -> None:
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StartupError(f"another merge is writing {job.partial} at this moment") from None


def _record(job: Job) -> dict[str, object]:
    """What the merge is of: enough to know on a second start that it is the same."""
    return {
        "dtype": str(job.dtype).removeprefix("torch."),
        "template": job.template.name,
        "parts": {name: fingerprint(folder) for name, folder in job.folders.items()},
    }
