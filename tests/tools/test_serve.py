"""Runs `llava-serving serve`, the command of `make serve`."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import START_TIMEOUT_SECONDS

COMMAND = [str(Path(sys.executable).parent / "llava-serving"), "serve", "--port"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*COMMAND, str(free_port())], cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    yield process, log
    process.terminate()  # a killed command could not end the server
    process.wait(30)


def printed_command(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Returns the example command that is printed after the line "Ready"."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        printed = log.read_text()
        if "\nEND\n" in printed:
            return printed[printed.index("curl ") : printed.index("\nEND\n")] + "\nEND\n"
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_example_command_works_in_any_folder(
    serving: tuple["subprocess.Popen[bytes]", Path], tmp_path: Path
) -> None:
    process, log = serving
    pasted = subprocess.run(
        ["sh"], input=printed_command(process, log), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (row,) = json.loads(pasted.stdout)
    assert "circle" in row["0"] or "square" in row["0"] or "triangle" in row["0"]


def listening_addresses(port: int) -> set[str]:
    """Returns the addresses that listen on a port: 7F000001 is 127.0.0.1, in the byte order of the machine."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


@pytest.mark.parametrize(("options", "address"), [((), "0100007F"), (("--host", "0.0.0.0"), "00000000")])
def test_the_server_listens_on_this_machine_only_unless_it_is_told(
    tmp_path: Path, options: tuple[str, ...], address: str
) -> None:
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*COMMAND, str(port), *options], cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    try:
        command = printed_command(process, log)
        assert listening_addresses(port) == {address}
        assert f"http://127.0.0.1:{port}/score" in command
    finally:
        process.terminate()
        process.wait(30)


def test_sigterm_ends_the_server_and_the_command(serving: tuple["subprocess.Popen[bytes]", Path]) -> None:
    process, log = serving
    printed_command(process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_taken_port_is_reported_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run([*COMMAND, str(port)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"port {port} is taken" in run.stderr


def test_a_folder_without_a_model_ends_the_command_with_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [*COMMAND, str(free_port()), "--model-dir", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "no model in AZUREML_MODEL_DIR" in run.stdout + run.stderr
    assert "Ready" not in run.stdout
    assert len(run.stderr.splitlines()) == 1


def test_a_port_number_out_of_range_is_reported() -> None:
    run = subprocess.run([*COMMAND, "80000"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("80000 is not a port number, which is 1 to 65535")
