"""Writes requirements.lock: every package that the image of deployment.yml installs, with the hash of its file.

  .venv/bin/python scripts/lock.py

It needs the network: pip resolves the dependencies of pyproject.toml, with the versions of constraints.txt, for the
image's Python and platform, from the index that pip is configured with. It downloads descriptions, not the packages.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PYTHON = "3.11"
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64"]
HEADER = f"""\
# Every package that the image of deployment.yml installs (Linux x86_64, Python {PYTHON}), with the SHA-256 of its file.
# scripts/lock.py writes this file. docs/security.md says how to install from it.
"""


def resolve() -> list[dict[str, Any]]:
    """Returns pip's report about each package."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", f"--constraint={ROOT / 'constraints.txt'}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    with tempfile.TemporaryDirectory() as target:
        report = subprocess.run([*command, f"--target={target}", *requirements], stdout=subprocess.PIPE, check=True)
    packages: list[dict[str, Any]] = json.loads(report.stdout)["install"]
    return packages


def lock_entry(package: dict[str, Any]) -> str:
    """Returns the package's lines of the lock. Raises SystemExit for a local build, whose hash no index publishes."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    if "+" in version:
        raise SystemExit(f"{name} {version} is a local build: run this with PIP_FIND_LINKS= and without an extra index")
    return f"{name}=={version} \\\n    --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}\n"


def main() -> None:
    entries = sorted(map(lock_entry, resolve()), key=str.lower)
    LOCK.write_text(HEADER + "".join(entries), "utf-8")
    print(f"{LOCK}: {len(entries)} packages")


if __name__ == "__main__":
    main()
