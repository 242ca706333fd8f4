"""The number of CPU cores that this process may use.

os.cpu_count() counts the machine's cores, also in a container that may use only some of them. os.process_cpu_count() of
Python 3.13 knows the affinity, but not the quota.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """Returns the cores of this process's CPU affinity, or fewer if a quota of its cgroups allows fewer.

    A part of a core counts as one core. `root` is the folder with proc/ and sys/. Source: the kernel's
    Documentation/admin-guide/cgroup-v2.rst (cpu.max) and Documentation/scheduler/sched-bwc.rst (version 1).
    """
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """Yields the quotas, in cores, of the cgroup of this process and of those above it."""
    cgroups = root / "sys" / "fs" / "cgroup"
    for line in (_read(root / "proc" / "self" / "cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from filter(None, (_quota(_read(folder / "cpu.max")) for folder in _folders(cgroups, group)))
        elif "cpu" in controllers.split(","):
            yield from filter(None, (_quota(_version_1(folder)) for folder in _folders(cgroups / "cpu", group)))


def _folders(mount: Path, group: str) -> Iterator[Path]:
    """Yields the folder of each group from the mount down to `group`.

    In a container the mount is often the group of the container, and `group` is then not below it.
    """
    yield mount
    for name in Path(group.strip("/")).parts:
        mount = mount / name
        yield mount


def _version_1(folder: Path) -> str | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None else f"{quota} {period}"


def _quota(text: str | None) -> float | None:
    """Returns the cores of "QUOTA PERIOD", or None if there is no quota."""
    try:
        quota, period = map(int, (text or "").split())  # version 2 writes `max` without a quota
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 writes -1


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
