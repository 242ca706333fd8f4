"""Virtual environments of the peers, and commands in them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .engine import PreparationError

# Threads that spin while they wait stall each other on shared cores, whatever runs them.
PASSIVE_WAITS = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHOWN_LINES = 12


def clean_environment() -> dict[str, str]:
    """Returns this process's environment without the Python paths of this project, with PASSIVE_WAITS and OFFLINE."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return inherited | PASSIVE_WAITS | OFFLINE


def install(folder: Path, requirements: Sequence[str], without: Sequence[str] = ()) -> Path:
    """Makes the virtual environment `folder`/venv if it is not there yet, and returns its Python.

    `without`: packages that a requirement brings and that must not stay.
    """
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed"
    wanted = "\n".join([*requirements, *(f"without {package}" for package in without)])
    if not stamp.exists() or stamp.read_text() != wanted:
        log = folder / "install.log"
        folder.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], log)
        run([str(python), "-m", "pip", "install", "--quiet", *requirements], log)
        if without:
            run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *without], log)
        stamp.write_text(wanted)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of those packages that the environment of `python` has."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "names = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: names[n] for n in sys.argv[1:] if n in names}))"
    )
    output = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


def run(command: Sequence[str], log: Path, **environment: str) -> None:
    """Runs a command and appends its output to `log`. Raises PreparationError with its last lines if it fails."""
    with log.open("ab") as out:
        start = out.tell()
        status = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=clean_environment() | environment
        ).returncode
    if status != 0:
        raise PreparationError(f"{' '.join(command[:4])} ... ended with status {status}:\n{last_lines(log, start)}")


def last_lines(log: Path, start: int = 0) -> str:
    """Returns the last lines of a log, from byte `start`."""
    text = log.read_bytes()[start:].decode("utf-8", "replace")
    return "\n".join(line.rstrip() for line in text.splitlines()[-SHOWN_LINES:])
