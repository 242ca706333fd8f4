"""`llava-serving merge`: base LLaMA + LLaVA v0 delta + CLIP to one folder that transformers and vLLM load.

Needs little memory whatever the model's size, and disk for the result (26.7 GB for 13B). The base is the original LLaMA
in Hugging Face layout or Meta's own (consolidated.*.pth); weights are .bin or safetensors. Stopped or killed, the same
command goes on where it was.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from ..errors import StartupError
from ..progress import Progress

FOLDERS = {
    "base": "the original LLaMA of the delta's size",
    "delta": "liuhaotian/LLaVA-13b-delta-v0",
    "vision": "openai/clip-vit-large-patch14",
    "output": "a folder that is not there yet, or is empty",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in FOLDERS.items():
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16"), default="float16", help="of the result; sums are float16's first"
    )
    parser.add_argument(
        "--template", choices=("auto", "v0", "v1"), default="auto", help="v1 for the deltas of that name; else v0"
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 0, 1 where it cannot be, 130 when stopped."""
    for folder in (arguments.base, arguments.delta, arguments.vision):
        if not folder.is_dir():
            print(f"llava-serving: there is no folder {folder}", file=sys.stderr)
            return 1
    # Here, so that neither other commands nor mistakes wait for torch.
    import torch

    from ..export.merge_job import prepare
    from ..export.merge_job import run as write_folder

    stop = _Stop()
    torch.set_num_threads(1)  # a sum of a few megabytes is done before a second thread has woken
    started = time.monotonic()
    try:
        dtype = getattr(torch, arguments.dtype)
        folders = arguments.base, arguments.delta, arguments.vision, arguments.output
        job = prepare(*folders, dtype, arguments.template)
        left = job.num_bytes_left
        if left < job.num_bytes:
            print(f"going on: {(job.num_bytes - left) / 1e9:.2f} GB are there already", file=sys.stderr)
        progress = Progress("merged", job.num_bytes, job.num_bytes - left)

        def written(num_bytes: int) -> None:
            stop.heed()
            progress.advance(num_bytes)

        write_folder(job, written)
        progress.finish()
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"llava-serving: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllava-serving: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(f"{arguments.output}: {job.num_bytes / 1e9:.2f} GB in {len(job.shards)} files, {seconds:.1f} s")
    print(f"to see that it is whole and can talk: llava-serving check {arguments.output}")
    return 0


class _Stop:
    """Ctrl-C and SIGTERM, heeded between two pieces: an exception out of nowhere can be lost in a finalizer.

    A second one ends the process as ever.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def heed(self) -> None:
        """Raises KeyboardInterrupt if it was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, _: object) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)
