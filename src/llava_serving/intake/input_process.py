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
    pieces = list(iter(connection.recv_bytes, b""))
    is_complete: bool = connection.recv()
    if is_complete:
        connection.send(_run(lambda: _work(reader, job, pieces)))


def _work(reader: RequestReader, job: Job, pieces: list[bytes]) -> Any:
    data = b"".join(pieces)
    pieces.clear()
    if isinstance(job, ReadRequestJob):
        return reader.read(data, job.accepts_stream, job.path)
    return reader.file_pixels(data, ImageSource("", job.path))


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
