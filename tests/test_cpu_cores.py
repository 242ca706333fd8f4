"""The cores that this process may use: its affinity and the quotas of fake cgroups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_serving.cpu_cores import available_cores

AFFINITY = len(os.sched_getaffinity(0))


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Writes /proc/self/cgroup and files of /sys/fs/cgroup below `root`, and returns `root`."""
    for name, content in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{n}": c for n, c in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"
CASES = {
    "v2, no quota": ("0::/\n", {"cpu.max": "max 100000\n"}, AFFINITY),
    "v2, one core": ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
    "v2, a part of a core": ("0::/\n", {"cpu.max": "25000 100000\n"}, 1),
    "v2, more cores than there are": ("0::/\n", {"cpu.max": "100000000 100000\n"}, AFFINITY),
    "v2, a group below the root": ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n"}, 1),
    "v2, a group above": ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
    "v2, a group that the container does not see": ("0::/../other\n", {"cpu.max": "100000 100000\n"}, 1),
    "v1, no quota": (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, AFFINITY),
    "v1, one core": (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    "v1, a group": (
        V1,
        {"cpu/docker/abc/cpu.cfs_quota_us": "50000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "v1, without its period": (V1, {"cpu/cpu.cfs_quota_us": "100000\n"}, AFFINITY),
    "not numbers": ("0::/\n", {"cpu.max": "?\n"}, AFFINITY),
    "a period of zero": ("0::/\n", {"cpu.max": "100000 0\n"}, AFFINITY),
    "no cgroups": ("", {}, AFFINITY),
}


@pytest.mark.parametrize(("cgroup", "files", "cores"), CASES.values(), ids=CASES)
def test_cores_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: int
) -> None:
    assert available_cores(machine(tmp_path, cgroup, files)) == cores


@pytest.mark.parametrize(("quota", "cores"), [(150_000, 2), (200_000, 2), (250_000, 3), (1_000_000, 8)])
def test_a_part_of_a_core_counts_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores(machine(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"})) == cores


def test_a_machine_without_proc_has_the_cores_of_its_affinity(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == AFFINITY


def test_a_process_that_may_use_one_core_counts_one() -> None:
    core = min(os.sched_getaffinity(0))
    code = "from llava_serving.cpu_cores import available_cores; print(available_cores())"
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
