import signal
import sys
from pathlib import Path

import pytest
from merge_cases import Merge, merge_command

from llava_serving.tools import cli


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Merge:
    """Runs the command in this process and returns its stderr. Fails unless the exit status is `status`."""

    def run(parts_dir: Path, output: Path, *options: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["llava-serving", *merge_command(parts_dir, output), *options])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        exit_status = cli.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        stderr = capsys.readouterr().err
        assert exit_status == status, stderr
        return stderr

    return run
