"""`llava-serving merge`: merges base LLaMA, LLaVA v0 delta and CLIP into one folder that transformers and vLLM load.

A model that the authors' apply_delta has merged is converted: --merged takes the place of --base and --delta.

It needs little memory, whatever the model's size, and disk space for the result (26.7 GB for 13B). The base is the
original LLaMA in Hugging Face layout or in Meta's (consolidated.*.pth). Weights are .bin or safetensors files. If the
command is stopped or killed, run it again to continue.
"""

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path

from ..errors import StartupError
from ..progress import Progress
from .resumable import run_resumable

FOLDERS = {
    "base": "the original LLaMA of the delta's size",
    "delta": "for example liuhaotian/LLaVA-13b-delta-v0",
    "merged": "instead of base and delta: what the authors' apply_delta wrote",
    "vision": "openai/clip-vit-large-patch14",
    "output": "a folder that does not exist or is empty",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, description in FOLDERS.items():
        is_required = name in ("vision", "output")
        parser.add_argument(f"--{name}", type=Path, required=is_required, metavar="DIR", help=description)
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16"),
        default="float16",
        help="dtype of the result; sums are rounded to float16 first",
    )
    parser.add_argument(
        "--template",
        choices=("auto", "v0", "v1", "simple"),
        default="auto",
        help="the conversation template: v1 for deltas with v1 in their name; auto is simple for the delta of "
        "ScienceQA, which has no image markers, else v0",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if the parts cannot be merged, 130 if the merge was stopped."""
    return run_resumable(partial(_merge, arguments))


def _merge(arguments: argparse.Namespace) -> str:
    """Returns the summary of the merge. Raises StartupError, OSError or KeyboardInterrupt."""
    is_conversion = arguments.merged is not None
    given = (arguments.base is not None, arguments.delta is not None)
    if given != ((False, False) if is_conversion else (True, True)):
        raise StartupError("give --base and --delta, or --merged alone")
    for folder in (arguments.base, arguments.delta, arguments.merged, arguments.vision):
        if folder is not None and not folder.is_dir():
            raise StartupError(f"there is no folder {folder}")
    # Imported here, because torch takes seconds to import. Other commands and wrong arguments need not wait for it.
    import torch

    from ..export.merge_job import prepare_conversion, prepare_merge, run_merge

    stop = _StopSignals()
    torch.set_num_threads(1)  # a sum of a few megabytes is done before a second thread has woken
    started = time.monotonic()
    options = arguments.vision, arguments.output, getattr(torch, arguments.dtype), arguments.template
    if is_conversion:
        job = prepare_conversion(arguments.merged, *options)
    else:
        job = prepare_merge(arguments.base, arguments.delta, *options)
    num_bytes_done = job.num_bytes - job.num_bytes_left
    if num_bytes_done:
        print(f"continuing: {num_bytes_done / 1e9:.2f} GB are merged already", file=sys.stderr)
    with Progress("merged", "B", job.num_bytes, num_bytes_done) as progress:

        def report_bytes(num_bytes: int) -> None:
            stop.raise_if_received()
            progress.advance(num_bytes)

        run_merge(job, report_bytes)
    seconds = time.monotonic() - started
    size = f"{job.num_bytes / 1e9:.2f} GB in {len(job.shards)} files, {seconds:.1f} s"
    return f"{arguments.output}: {size}\ncheck it with: llava-serving check {arguments.output}"


class _StopSignals:
    """Records Ctrl-C and SIGTERM, so that the merge stops between two chunks. A second signal ends the process at once.

    An exception that a signal handler raises can be lost: Python ignores exceptions in finalizers.
    """

    def __init__(self) -> None:
        self._received = False
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, self._record)

    def raise_if_received(self) -> None:
        """Raises KeyboardInterrupt after a signal."""
        if self._received:
            raise KeyboardInterrupt

    def _record(self, signal_number: int, _: object) -> None:
        self._received = True
        signal.signal(signal_number, signal.SIG_DFL)
