"""Locks on files: which of two open files gets the lock, and when it is free again."""

import errno
import fcntl
from pathlib import Path

import pytest

from llava_serving.file_lock import lock_file


def test_a_file_is_locked_until_it_closes(tmp_path: Path) -> None:
    path = tmp_path / "file.lock"
    with path.open("a") as first, path.open("a") as second:
        assert lock_file(first)
        assert not lock_file(second)
        first.close()
        assert lock_file(second)


def test_a_file_system_without_locks_grants_every_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "file.lock").open("a") as file:
        assert lock_file(file)
        assert lock_file(file, wait=True)
