"""An input process: reads one large request or picture after the other, for the service's process.

The service's process starts `python -m llava_serving.intake.input_process FD`. It sends an IntakeConfig, and then jobs:
the Job, the data in pieces, an empty piece, and whether the data is complete. Each job is answered by a Reply.
"""

import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import RequestError, TooLarge
from ..inputs.prompt import ImageSource
from .jobs import Job, ReadRequestJob, Reply
from .request_reader import IntakeConfig, RequestReader

# Other work goes first: the engine's step, and small requests.
NICENESS = 5
# Beside the body and the picture.
SPARE_BYTES = 256 * 1024 * 1024
# Lists, objects and their items in a body. The largest request that is accepted has fewer than a thousand, besides
# commas in its texts, and a body of commas alone would take thirty times its size as Python's objects.
MAX_JSON_ITEMS = 200_000
# A body exists as bytes, as pieces, and as text. A picture exists as decoded, as RGB, and turned upright, each with at
# most 4 bytes a pixel.
BODY_COPIES, BYTES_PER_PIXEL = 4, 12


def main(descriptor: int) -> None:
    """Answers jobs until the service's process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end closes the connection
    os.nice(NICENESS)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        config: IntakeConfig = connection.recv()
        reader = RequestReader(config)
        _limit_memory(config)
        while True:
            _answer(connection, reader)


def _answer(connection: Connection, reader: RequestReader) -> None:
    job: Job = connection.recv()
    data = JobData(max_items=MAX_JSON_ITEMS if isinstance(job, ReadRequestJob) else None)
    while piece := connection.recv_bytes():
        data.add(piece)
    is_complete: bool = connection.recv()
    if is_complete:
        connection.send(_run(lambda: _work(reader, job, data)))


def _work(reader: RequestReader, job: Job, data: "JobData") -> Any:
    if isinstance(job, ReadRequestJob):
        return reader.read(data.take(), job.accepts_stream, job.path)
    return reader.file_pixels(data.take(), ImageSource("", job.path))


class JobData:
    """The data of a job, as it arrives. Keeps no more of JSON with more than `max_items` items."""

    def __init__(self, max_items: int | None) -> None:
        self._max_items = max_items
        self._num_items = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        if self._max_items is not None:
            self._num_items += sum(map(piece.count, (b",", b"[", b"{")))
        if self._has_too_many_items:
            self._pieces.clear()
        else:
            self._pieces.append(piece)

    def take(self) -> bytes:
        """Returns the data, and forgets it. Raises TooLarge if it has too many items."""
        if self._has_too_many_items:
            raise TooLarge("body_too_large", f"the body has more than the {self._max_items:,} items that are accepted")
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    @property
    def _has_too_many_items(self) -> bool:
        return self._max_items is not None and self._num_items > self._max_items


def _run(work: Callable[[], Any]) -> Reply:
    try:
        return Reply(result=work())
    except RequestError as error:
        return Reply(refusal=(type(error), error.code, error.message, error.param))
    except MemoryError:
        return Reply(refusal=(TooLarge, "body_too_large", "the request needs more memory than it may use", None))
    except Exception:
        return Reply(failure=traceback.format_exc())


def _limit_memory(config: IntakeConfig) -> None:
    """Makes the kernel refuse memory beyond what the largest request needs."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return
    used = int(status.read_text().split("VmData:")[1].split()[0]) * 1024
    largest = BODY_COPIES * config.max_body_bytes + BYTES_PER_PIXEL * config.image_limits.max_pixels
    resource.setrlimit(resource.RLIMIT_DATA, (used + largest + SPARE_BYTES, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(int(sys.argv[1]))
