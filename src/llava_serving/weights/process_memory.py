"""The memory that Linux has left for this process: what the machine has available, and what its cgroups allow.

Cached files count as available: the kernel drops them when a process needs their memory. A checkpoint that was just
downloaded fills the cache.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class _Files(NamedTuple):
    """The names of a version of cgroup: the files of limit and usage, and memory.stat's keys of cached files."""

    limit: str
    usage: str
    cached: tuple[str, str]


V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns bytes: the least of MemAvailable (proc(5)) and of what each cgroup of the process has left.

    Returns None where neither is known, as on another system than Linux.
    """
    sizes = [_left(folder, files) for folder, files in _cgroups(proc, cgroup)]
    kib = _values(proc / "meminfo").get("MemAvailable:")
    if kib is not None:
        sizes.append(kib * 1024)
    return min((size for size in sizes if size is not None), default=None)


def _cgroups(proc: Path, mount: Path) -> Iterator[tuple[Path, _Files]]:
    """Yields the process's cgroups and all above them: a limit of an outer group holds for the inner ones.

    In a container without a namespace of its own, the path is the host's, and only the mounted root exists.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (mount / "memory", V1) if controllers else (mount, V2)
        names = [name for name in path.split("/") if name not in ("", ".", "..")]
        for depth in range(len(names) + 1):
            yield root.joinpath(*names[:depth]), files


def _left(folder: Path, files: _Files) -> int | None:
    """Returns the bytes that a cgroup has left, or None if it has no limit."""
    limit, usage = (_number(_read(folder / name)) for name in (files.limit, files.usage))
    if limit is None or usage is None:
        return None
    stat = _values(folder / "memory.stat")
    return max(0, limit - usage + sum(stat.get(key, 0) for key in files.cached))


def _values(path: Path) -> dict[str, int]:
    """Returns the number behind each key of a file that has a key and a number on each line."""
    pairs = (line.split()[:2] for line in _read(path).splitlines())
    return {pair[0]: number for pair in pairs if len(pair) == 2 and (number := _number(pair[1])) is not None}


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,20}\s*", text) else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: a path with a null character
        return ""
