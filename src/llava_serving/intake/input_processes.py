"""The input processes, as the service's process sees them: a queue, first come, first served."""

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadRequest, ClientClosed, DeadlineExceeded, InternalError, StartupError
from .jobs import Job, ReadRequestJob, Reply
from .request_reader import IntakeConfig

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
# A waiting thread looks this often whether its caller is still there.
CHECK_SECONDS = 0.1
# glibc returns blocks above the threshold to the system when they are freed. Its own threshold grows to 32 MiB, and
# then a picture's memory stays with the process.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "262144", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Caller:
    """Who waits for a job: until `deadline`, in seconds of time.monotonic, or until it has disconnected."""

    deadline: float
    is_disconnected: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises DeadlineExceeded or ClientClosed if nobody waits any more."""
        if time.monotonic() >= self.deadline:
            raise DeadlineExceeded("deadline_exceeded", "the request was not read before the deadline")
        if self.is_disconnected():
            raise ClientClosed("client_closed", "the client disconnected before the end")


class InputProcesses:
    """Runs jobs in `count` processes. A process that dies is replaced."""

    def __init__(self, config: IntakeConfig, count: int) -> None:
        self._lock = threading.Lock()
        self._processes = [_InputProcess(config) for _ in range(count)]
        self._idle = deque(self._processes)
        self._waiting: deque[_Turn] = deque()

    def check(self) -> None:
        """Waits until a process answers. Raises StartupError if it does not."""
        with contextlib.suppress(BadRequest):  # the answer to a body that is no JSON
            try:
                self.run(ReadRequestJob(False, ""), [b"["], Caller(time.monotonic() + START_SECONDS))
            except (InternalError, DeadlineExceeded) as error:
                raise StartupError(f"an input process does not answer: {error.message}") from None

    def run(self, job: Job, pieces: Iterable[bytes], caller: Caller) -> Any:
        """Returns the result of a job, whose data is `pieces`. Raises RequestError."""
        process = self._take(caller)
        try:
            reply = process.run(job, pieces, caller)
        finally:
            self._give_back(process)
        if reply.failure is not None:
            logger.error("an input process failed on a request:\n%s", reply.failure)
            raise InternalError("internal_error", "the service failed on this request; its log says why")
        if reply.refusal is not None:
            kind, code, message, param = reply.refusal
            raise kind(code, message, param)
        return reply.result

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """Ends the idle processes. One that works ends when this process does."""
        with self._lock:
            for process in self._idle:
                process.kill()

    def _take(self, caller: Caller) -> "_InputProcess":
        with self._lock:
            if self._idle:
                return self._idle.popleft()
            turn = _Turn()
            self._waiting.append(turn)
        while not turn.came.wait(CHECK_SECONDS):
            try:
                caller.check()
            except Exception:
                self._leave(turn)
                raise
        assert turn.process is not None
        return turn.process

    def _leave(self, turn: "_Turn") -> None:
        with self._lock:
            if turn.process is None:
                self._waiting.remove(turn)
                return
        self._give_back(turn.process)

    def _give_back(self, process: "_InputProcess") -> None:
        with self._lock:
            if not self._waiting:
                self._idle.append(process)
                return
            turn = self._waiting.popleft()
            turn.process = process
            turn.came.set()


class _Turn:
    """A thread that waits for a process."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.process: _InputProcess | None = None


class _InputProcess:
    """One process. Only the thread that took it uses it."""

    def __init__(self, config: IntakeConfig) -> None:
        self._config = config
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, job: Job, pieces: Iterable[bytes], caller: Caller) -> Reply:
        """Returns the reply to a job. Kills the process if nobody waits for it any more."""
        try:
            return self._run(job, pieces, caller)
        except (EOFError, OSError) as error:
            logger.error("an input process ended with status %s (%s)", self._process.poll(), type(error).__name__)
            self._restart()
            raise InternalError("internal_error", "the service failed on this request; its log says why") from None
        except (DeadlineExceeded, ClientClosed):
            self._restart()
            raise

    def kill(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _run(self, job: Job, pieces: Iterable[bytes], caller: Caller) -> Reply:
        self._connection.send(job)
        is_complete = False
        try:
            for piece in pieces:
                self._connection.send_bytes(piece)
            is_complete = True
        finally:
            self._connection.send_bytes(b"")
            self._connection.send(is_complete)
        while not self._connection.poll(CHECK_SECONDS):
            caller.check()
        reply: Reply = self._connection.recv()
        return reply

    def _start(self) -> None:
        self._connection, child = multiprocessing.Pipe()
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(SOURCE)}
        command = [sys.executable, "-m", "llava_serving.intake.input_process", str(child.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[child.fileno()], env=environment)
        child.close()
        self._connection.send(self._config)

    def _restart(self) -> None:
        self.kill()
        self._start()
