"""What a process and all its descendants use, from /proc: memory, threads and descriptors."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

SAMPLE_SECONDS = 0.1
PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """Returns the ids of `root` and of its children, their children and so on."""
    parents = {int(folder.name): parent for folder in PROC.glob("[0-9]*") if (parent := _parent(folder)) is not None}
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def memory_mib(root: int) -> float:
    """Returns the memory of a process and its descendants in MiB.

    A page that several processes share counts once (PSS), or once for each of them where PSS is not readable (RSS).
    """
    return sum(_memory_kib(pid) for pid in process_tree(root)) / 1024


def usage(root: int) -> dict[str, float]:
    """Returns memory, threads and descriptors of a process and its descendants."""
    tree = process_tree(root)
    return {
        "mib": memory_mib(root),
        "processes": len(tree),
        "threads": sum(_count(PROC / str(pid) / "task") for pid in tree),
        "descriptors": sum(_count(PROC / str(pid) / "fd") for pid in tree),
    }


class MemoryCurve:
    """Samples the memory of a process and its descendants while the `with` block runs."""

    def __init__(self, root: int, seconds: float = SAMPLE_SECONDS) -> None:
        self._root, self._interval = root, seconds
        self._started = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._resident_kib: dict[int, int] = {}
        self.samples: list[tuple[float, float]] = []  # (seconds since the start, MiB)
        # How much each process grew at most, in all. The kernel keeps this: a peak between two samples counts too.
        self.growth_mib = 0.0

    @property
    def peak_mib(self) -> float:
        return max(mib for _, mib in self.samples)

    def __enter__(self) -> "MemoryCurve":
        self._resident_kib = {pid: _reset_peak(pid) for pid in process_tree(self._root)}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self.growth_mib = sum(_peak_kib(pid, kib) - kib for pid, kib in self._resident_kib.items()) / 1024

    def _sample(self) -> None:
        while True:
            self.samples.append((time.monotonic() - self._started, memory_mib(self._root)))
            if self._end.wait(self._interval):
                return


def over_idle(idle_mib: float, curve: MemoryCurve, rest_mib: float) -> dict[str, Any]:
    """Returns the figures of a curve, in MiB, with every sample."""
    peak = max(curve.peak_mib, idle_mib + curve.growth_mib)
    return {
        "idle_mib": idle_mib, "peak_mib": peak, "rest_mib": rest_mib,
        "peak_over_idle_mib": peak - idle_mib, "rest_over_idle_mib": rest_mib - idle_mib,
        "samples": curve.samples,
    }  # fmt: skip


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # the process has ended
        return None


def _memory_kib(pid: int) -> int:
    return _field_kib(pid, "smaps_rollup", "Pss:") or _field_kib(pid, "status", "VmRSS:") or 0  # 0: it has ended


def _reset_peak(pid: int) -> int:
    """Makes the kernel forget the process's peak (proc(5), clear_refs), and returns its resident memory in KiB."""
    try:
        (PROC / str(pid) / "clear_refs").write_text("5")
    except OSError:  # not permitted, or the process has ended
        return _peak_kib(pid, 0)
    return _field_kib(pid, "status", "VmRSS:") or 0


def _peak_kib(pid: int, default: int) -> int:
    return max(default, _field_kib(pid, "status", "VmHWM:") or default)


def _field_kib(pid: int, file: str, field: str) -> int | None:
    try:
        return int((PROC / str(pid) / file).read_text().split(field)[1].split()[0])
    except (OSError, IndexError):
        return None


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
