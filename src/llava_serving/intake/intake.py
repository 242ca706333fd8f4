"""Decides where a request is read: a small one in the caller's thread, a large one in an input process."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..api.score_request import ScoreRequest
from ..cpu_cores import available_cores
from ..inputs.clip_preprocessor import Pixels
from ..inputs.prompt import ImageSource
from .input_processes import Caller, InputProcesses
from .jobs import Job, ReadImageJob, ReadRequestJob
from .memory import MemoryReturn
from .request_reader import IntakeConfig, ReadRequest, RequestReader

# Parsing a body of this size holds Python's lock for a millisecond or two.
SMALL_BODY_BYTES = 1024 * 1024
# Decoded, at most 30 MB: as itself, as RGB, and turned upright.
SMALL_IMAGE_PIXELS = 2_500_000
# One process for this many cores, up to a number that keeps a large GPU busy with photographs.
CORES_PER_PROCESS, MAX_PROCESSES = 4, 4


def default_num_processes(cores: int) -> int:
    return max(1, min(MAX_PROCESSES, cores // CORES_PER_PROCESS))


@dataclass(frozen=True)
class IncomingBody:
    """The body of a request: its pieces, which are read while they are used, and its length if it is known."""

    pieces: Iterable[bytes]
    length: int | None
    accepts_stream: bool
    path: str


class Intake:
    """Reads requests from any number of threads."""

    def __init__(self, config: IntakeConfig, num_processes: int) -> None:
        self._reader = RequestReader(config)
        self._processes = InputProcesses(config, num_processes)
        self._memory = MemoryReturn()
        # Decoding an image takes a core. One core stays free for the engine, so that images do not delay the tokens of
        # other requests.
        self._decode_slots = threading.BoundedSemaphore(max(1, available_cores() - 1))

    def check(self) -> None:
        """Waits until the input processes run. Raises StartupError if they do not."""
        self._processes.check()

    def stop(self) -> None:
        self._processes.stop()

    def parse(self, body: IncomingBody, caller: Caller) -> "ParsedRequest":
        """Returns the request in a body. Raises RequestError."""
        pieces = iter(body.pieces)
        start = [] if (body.length or 0) > SMALL_BODY_BYTES else _take(pieces, SMALL_BODY_BYTES)
        if sum(map(len, start)) > SMALL_BODY_BYTES or (body.length or 0) > SMALL_BODY_BYTES:
            job = ReadRequestJob(body.accepts_stream, body.path)
            read: ReadRequest = self._run(job, chain(start, pieces), caller)
            return ParsedRequest(read.request, read.pixels)
        return ParsedRequest(self._reader.parse(b"".join(start), body.accepts_stream, body.path), {})

    def image(self, parsed: "ParsedRequest", source: ImageSource, caller: Caller) -> Pixels:
        """Returns the pixels of an image of a request, (3, size, size) float32. Raises RequestError."""
        if source.path in parsed.pixels:
            return parsed.pixels[source.path]
        file = self._reader.image_file(source)
        with self._decode_slots:
            small = self._reader.small_pixels(file, source, SMALL_IMAGE_PIXELS)
        if small is not None:
            return small
        pixels: Pixels = self._run(ReadImageJob(source.path), [file], caller)
        return pixels

    def _run(self, job: Job, pieces: Iterable[bytes], caller: Caller) -> Any:
        try:
            return self._processes.run(job, pieces, caller)
        finally:
            self._memory.request()


@dataclass(frozen=True)
class ParsedRequest:
    """A request, and the pixels of its images that are decoded already, by the path of the image."""

    request: ScoreRequest
    pixels: dict[str, Pixels]


def _take(pieces: Iterator[bytes], size: int) -> list[bytes]:
    """Returns the first pieces, up to the one that makes them larger than `size`."""
    taken: list[bytes] = []
    while sum(map(len, taken)) <= size and (piece := next(pieces, b"")):
        taken.append(piece)
    return taken
