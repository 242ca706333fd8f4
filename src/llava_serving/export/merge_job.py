"""Merges base, delta and vision tower, or a model that is merged already and its vision tower, into one folder.

Writes `<output>.partial`, then renames it. A merge that was killed continues after its last complete shard.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import StartupError
from ..file_lock import lock_file
from ..inputs.clip_preprocessor import ClipPreprocessor, load_preprocessor
from ..inputs.templates import Template
from ..model_files import read_json
from ..weights.finite_values import NonFiniteWeights
from ..weights.parts import OpenedParts, open_merged_v0, open_parts
from ..weights.storage.fingerprint import fingerprint
from ..weights.template_choice import choose_delta_template
from ..weights.tensor_names import to_interchange_name
from .shard_writer import TEMPORARY_SUFFIX, Shard, fsync, index_json, missing_shards, plan_shards, write_shards

MERGE_RECORD_FILE = "llava_merge.json"
RESERVED_BYTES = 64 * 1024 * 1024  # disk space for the tokenizer, the configs and the file system


@dataclass(frozen=True)
class MergeJob:
    """A merge whose parts, output folder and disk space have been checked."""

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
        return sum(shard.num_bytes for shard in missing_shards(self.shards, self.partial))


def prepare_merge(
    base: Path, delta: Path, vision: Path, output: Path, dtype: torch.dtype, template: str = "auto"
) -> MergeJob:
    """Checks everything that could fail later, and writes nothing. Raises StartupError."""
    folders = {"base": base, "delta": delta, "vision": vision}
    _check_output(output.absolute(), folders)
    return _prepare(open_parts(base, delta, vision), folders, output.absolute(), dtype, template)


def prepare_conversion(merged: Path, vision: Path, output: Path, dtype: torch.dtype, template: str) -> MergeJob:
    """Does the same for a model that the authors' `apply_delta` has merged. Raises StartupError."""
    folders = {"merged": merged, "vision": vision}
    _check_output(output.absolute(), folders)
    return _prepare(open_merged_v0(merged, vision), folders, output.absolute(), dtype, template)


def _prepare(parts: OpenedParts, folders: dict[str, Path], output: Path, dtype: torch.dtype, template: str) -> MergeJob:
    _check_added_tokens(parts)
    vision = folders["vision"]
    preprocessor = load_preprocessor(vision, parts.architecture.image_size)
    merged_tensors = {to_interchange_name(name): tensor for name, tensor in parts.merged_tensors.items()}
    shards = plan_shards(merged_tensors, dtype)
    conversation_template = choose_delta_template(template, parts.added_tokens)
    job = MergeJob(parts, preprocessor, folders, output, dtype, conversation_template, shards)
    _check_partial_folder(job)
    _check_disk_space(job)
    return job


def run_merge(job: MergeJob, on_write: Callable[[int], None]) -> None:
    """Writes the output folder. Calls `on_write` with the number of bytes of each write. Raises StartupError."""
    job.partial.mkdir(parents=True, exist_ok=True)
    try:
        _write_and_rename(job, on_write)
    except NonFiniteWeights:
        shutil.rmtree(job.partial)  # the parts must change, so no later merge can continue it
        raise
    fsync(job.output.parent)


def _write_and_rename(job: MergeJob, on_write: Callable[[int], None]) -> None:
    with (job.partial / MERGE_RECORD_FILE).open("a+", encoding="utf-8") as record:
        if not lock_file(record):
            raise StartupError(f"another merge is writing {job.partial} at this moment")
        if not record.tell():  # a record that is there is equal: prepare_merge compared it
            record.write(json.dumps(_merge_record(job), indent=2) + "\n")
            record.flush()
        with ThreadPoolExecutor(1, "configs") as thread:
            other_files = thread.submit(_write_other_files, job)
            write_shards(missing_shards(job.shards, job.partial), job.partial, job.dtype, on_write)
            other_files.result()
        for file in job.partial.iterdir():
            fsync(file)
        fsync(job.partial)
        job.partial.rename(job.output)


def _write_other_files(job: MergeJob) -> None:
    # Imported here, because transformers takes seconds to import. The weights are written meanwhile.
    from .hf_folder import write_configs_and_tokenizer

    tokenizer_model = job.parts.folders[-2].directory / "tokenizer.model"
    write_configs_and_tokenizer(job.parts, job.preprocessor, job.dtype, job.template, tokenizer_model, job.partial)
    (job.partial / "model.safetensors.index.json").write_text(index_json(job.shards), "utf-8")


def _check_output(output: Path, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        if output == folder.absolute() or output in folder.absolute().parents:
            raise StartupError(f"the output {output} is or holds the {name}; choose another folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StartupError(f"the output {output} exists and is not empty; choose another folder, or remove it first")


def _check_added_tokens(parts: OpenedParts) -> None:
    """Raises StartupError if the added tokens' ids have a gap: a fast tokenizer gives ids without gaps."""
    embedding_rows, first_id = parts.architecture.text["vocab_size"], parts.sentencepiece.vocab_size()
    ids = sorted(i for i in parts.added_tokens.values() if i < embedding_rows)
    if ids != list(range(first_id, first_id + len(ids))):
        raise StartupError(
            f"the added tokens are {parts.added_tokens}: those below {embedding_rows}, the number of rows in the "
            f"embedding, must continue from {first_id} without a gap"
        )


def _check_partial_folder(job: MergeJob) -> None:
    """Raises StartupError unless the partial folder is missing, empty, or of an equal merge."""
    record = job.partial / MERGE_RECORD_FILE
    has_record = record.is_file() and record.stat().st_size
    if has_record and read_json(record) == _merge_record(job):
        return
    if has_record or (job.partial.exists() and any(file != record for file in job.partial.iterdir())):
        raise StartupError(f"{job.partial} holds an unfinished merge of other parts or settings; remove it first")


def _check_disk_space(job: MergeJob) -> None:
    folder = next(folder for folder in job.output.parents if folder.exists())
    incomplete_files = job.partial.glob(f"*{TEMPORARY_SUFFIX}") if job.partial.exists() else ()
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in incomplete_files)
    needed = job.num_bytes_left + RESERVED_BYTES
    if free < needed:
        raise StartupError(
            f"{folder} has {free / 1e9:.1f} GB free, and the merged model needs {needed / 1e9:.1f} GB; "
            "free some space, or choose an output on another disk"
        )


def _merge_record(job: MergeJob) -> dict[str, object]:
    """Returns what identifies the merge: a later start with an equal record continues it."""
    return {
        "dtype": str(job.dtype).removeprefix("torch."),
        "template": job.template.name,
        "parts": {name: fingerprint(folder) for name, folder in job.folders.items()},
    }
