"""requirements.lock compared with pyproject.toml, constraints.txt and the installed packages, without the network."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
ENTRY = re.compile(r"^([\w.-]+)==([\w.]+) \\\n    --hash=sha256:[0-9a-f]{64}\n", re.MULTILINE)
# torch's build for CUDA brings these. The environment of the tests has the build for CPUs.
CUDA = ("cuda-", "nvidia-")
# torch requires it in any version, and each new environment has one.
UNCONSTRAINED = (*CUDA, "setuptools")


def locked_versions() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in ENTRY.findall(LOCK)}


def pinned_versions(requirements: list[str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in requirements)}


def test_every_package_of_the_lock_has_a_hash() -> None:
    rest = ENTRY.sub("", LOCK)
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert len(locked_versions()) == len(ENTRY.findall(LOCK)) > 50


def test_the_lock_has_the_versions_of_pyproject_and_constraints() -> None:
    locked = locked_versions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert locked.items() >= pinned_versions(project["dependencies"]).items()
    constraints = pinned_versions((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    others = {name for name in locked if locked[name] != constraints.get(name)}
    assert {name for name in others if not name.startswith(UNCONSTRAINED)} == set()


def test_the_lock_has_every_package_that_a_locked_package_requires() -> None:
    locked = locked_versions()
    num_installed = 0
    for name in locked:
        try:
            requirements = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            assert name.startswith((*CUDA, "triton"))
            continue
        num_installed += 1
        needed = {r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
        assert {canonicalize_name(other) for other in needed} <= locked.keys(), name
    assert num_installed > 50
