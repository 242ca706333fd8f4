"""A server whose device becomes slow or fails when a test says so."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from server import ROOT, Server

# score.py, with shorter time limits and a ModelRunner that has a fault while a file with the fault's name exists.
ENTRY_SCRIPT = f"""
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from score import init, run
import llava_serving.service.shutdown
from llava_serving.model.model_runner import ModelRunner

FOLDER = Path(__file__).parent
launch, probe = ModelRunner.launch, ModelRunner.probe


def faulty_launch(self, batch):
    if (FOLDER / "slow").exists():
        time.sleep(0.02)
    while (FOLDER / "hang").exists():
        time.sleep(0.05)
    if (FOLDER / "fail_once").exists():
        (FOLDER / "fail_once").unlink()
        raise RuntimeError("this step fails")
    if (FOLDER / "broken").exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return launch(self, batch)


def faulty_probe(self):
    if (FOLDER / "broken").exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    probe(self)


ModelRunner.launch, ModelRunner.probe = faulty_launch, faulty_probe
llava_serving.service.shutdown.DRAIN_SECONDS = float(os.environ["DRAIN_SECONDS"])
"""


class FaultInjectionServer(Server):
    """A server on the demo model with the faults `slow`, `hang`, `fail_once` and `broken`.

    `slow` adds 20 ms to each step. `hang` holds the next step until the fault is disabled. `fail_once` fails the next
    step. `broken` fails every step and every probe of the device. `environment` holds environment variables.
    """

    def __init__(self, folder: Path, drain_seconds: float = 2.0, **environment: str) -> None:
        self._folder = folder
        script = folder / "entry.py"
        script.write_text(ENTRY_SCRIPT)
        super().__init__(
            folder / "log",
            environment={"LLAVA_READ_TIMEOUT_SECONDS": "1", "DRAIN_SECONDS": str(drain_seconds)} | environment,
            entry_script=script,
        )

    def enable(self, fault: str) -> None:
        (self._folder / fault).touch()

    def disable(self, fault: str) -> None:
        (self._folder / fault).unlink(missing_ok=True)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """Makes the steps slow until the end of the block."""
        self.enable("slow")
        try:
            yield
        finally:
            self.disable("slow")
