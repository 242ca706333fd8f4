"""The merged model kept on a disk, so that later starts read half as much and sum nothing."""

import fcntl
import hashlib
import json
import logging
import time
from pathlib import Path

import torch

from ..errors import StartupError
from ..weights.model_dir import MergedCheckpoint, ModelParts
from ..weights.storage.fingerprint import fingerprint
from .merge_job import prepare, run

logger = logging.getLogger(__name__)


def kept(trio: ModelParts, directory: Path, template: str) -> MergedCheckpoint | ModelParts:
    """The merged folder of `trio` in `directory`, made now if it is not there.

    Workers that start together make it once. Where it cannot be made, the log says why, and it is the trio itself.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Whatever its files are called and wherever they are mounted, other weights have another name here.
        name = json.dumps([fingerprint(folder) for folder in trio.folders] + [template])
        merged = directory / f"llava-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        with (directory / "llava-serving.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not merged.is_dir():
                started = time.monotonic()
                job = prepare(trio.base, trio.delta, trio.vision, merged, torch.float16, template)
                run(job, lambda _: None)
                seconds = time.monotonic() - started
                logger.info("merged into %s, %.1f GB in %.1f s", merged, job.num_bytes / 1e9, seconds)
    except (StartupError, OSError) as error:
        logger.warning("LLAVA_MERGED_CACHE_DIR=%s is not used: %s", directory, error)
        return trio
    return MergedCheckpoint(merged)
