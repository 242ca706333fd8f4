"""A cache of merged models on a disk: later starts read half as many bytes and add nothing."""

import logging
import time
from pathlib import Path

import torch

from ..errors import StartupError
from ..file_lock import lock_file
from ..weights.model_folder import MergedFolder, PartsFolder
from ..weights.storage.fingerprint import folders_digest
from .merge_job import prepare_merge, run_merge

logger = logging.getLogger(__name__)


def open_or_merge(parts: PartsFolder, cache_dir: Path, template: str) -> MergedFolder | PartsFolder:
    """Returns the merged model of `parts` in `cache_dir`. Merges it first if it is not there.

    Workers that start together merge it once. If it cannot be merged, logs the reason and returns `parts`.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        merged = cache_dir / f"llava-{folders_digest(parts.folders, template)}"
        with (cache_dir / "llava-serving.lock").open("a") as lock:
            lock_file(lock, wait=True)
            if not merged.is_dir():
                _merge(parts, merged, template)
    except (StartupError, OSError) as error:
        logger.warning("LLAVA_MERGED_CACHE_DIR=%s is not used: %s", cache_dir, error)
        return parts
    return MergedFolder(merged)


def _merge(parts: PartsFolder, output: Path, template: str) -> None:
    started = time.monotonic()
    job = prepare_merge(parts.base, parts.delta, parts.vision, output, torch.float16, template)
    run_merge(job, lambda _: None)
    logger.info("merged into %s, %.1f GB in %.1f s", output, job.num_bytes / 1e9, time.monotonic() - started)
