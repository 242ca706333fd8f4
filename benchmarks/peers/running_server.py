"""An engine's server process while it is measured."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from servers import free_port

from .engine import Engine, PreparationError
from .environments import clean_environment, last_lines

START_SECONDS, STOP_SECONDS = 300.0, 30.0


class RunningServer:
    """Starts the engine. It is healthy when the `with` block begins, and all its processes have ended after it.

    Raises PreparationError with the last lines of the log if the server ends or is not healthy in START_SECONDS.
    """

    def __init__(self, engine: Engine, log: Path) -> None:
        port = free_port()
        self._engine, self._log = engine, log
        self._address = f"http://127.0.0.1:{port}"
        self.url = self._address + engine.path
        self._started = time.monotonic()
        self.start_seconds = 0.0
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                engine.command(port), env=clean_environment() | engine.environment, cwd=engine.source, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "RunningServer":
        try:
            self._wait_until_healthy()
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - self._started
        return self

    def _wait_until_healthy(self) -> None:
        while time.monotonic() - self._started < START_SECONDS:
            if self._process.poll() is not None:
                raise PreparationError(f"the server ended with {self._process.returncode}:\n{last_lines(self._log)}")
            try:
                with urllib.request.urlopen(self._address + self._engine.health, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise PreparationError(f"the server was not ready after {START_SECONDS:.0f} s:\n{last_lines(self._log)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Ends the process, and then what is left of its session."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def resident_gib(self) -> float:
        """Returns the resident memory of all processes of the server, without counting shared pages twice."""
        return sum(_proportional_kib(pid) for pid in _session(self._process.pid)) / 2**20


def _session(leader: int) -> list[int]:
    """Returns the processes of a session."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _session_of(pid) == leader]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _proportional_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("\nPss:")[1].split()[0])
