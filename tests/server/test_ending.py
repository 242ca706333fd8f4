"""The signals that end the real server process: the first in order, the second at once."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS, Server
from server_requests import fixed_length_body, raw_post, score_in_background

pytestmark = pytest.mark.slow


def refuses_connections(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_refuses_new_connections_while_an_answer_is_under_way(tmp_path: Path) -> None:
    with FaultInjectionServer(tmp_path) as server, contextlib.ExitStack() as stack:
        server.wait_until_healthy()
        stack.enter_context(server.slow())
        stream = stack.enter_context(server.stream(fixed_length_body("The sky is", stream=True)))
        events = iter(stream)
        next(events)
        server.terminate()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not refuses_connections(server):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        *_, last = events
        assert last.data == "[DONE]"
        assert server.wait_until_ended() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_without_the_answers_under_way(tmp_path: Path, second: signal.Signals) -> None:
    with FaultInjectionServer(tmp_path, drain_seconds=60) as server:
        server.wait_until_healthy()
        server.enable("hang")
        (request,) = score_in_background(server, fixed_length_body("The sky is"))
        time.sleep(0.5)
        server.terminate()
        time.sleep(0.5)
        assert server.is_running
        server.send_signal(second)
        began = time.monotonic()
        server.wait_until_ended()
        assert time.monotonic() - began < 8
        assert request.exception(TIMEOUT_SECONDS) is not None


def test_a_killed_worker_is_replaced_and_its_callers_are_told(tmp_path: Path) -> None:
    with FaultInjectionServer(tmp_path) as server:
        server.wait_until_healthy()
        server.enable("hang")
        (request,) = score_in_background(server, fixed_length_body("The sky is"))
        time.sleep(0.5)
        (worker,) = server.worker_pids
        readers = input_processes(worker)
        assert readers
        os.kill(worker, signal.SIGKILL)
        assert request.exception(TIMEOUT_SECONDS) is not None
        server.disable("hang")
        server.wait_until_healthy()
        assert server.worker_pids != [worker]
        assert not any(Path(f"/proc/{pid}").exists() for pid in readers)


def input_processes(worker: int) -> list[int]:
    children = Path("/proc").glob("[0-9]*/status")
    return [int(path.parent.name) for path in children if f"\nPPid:\t{worker}\n" in read(path)]


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def test_the_time_limit_of_a_request_counts_from_its_first_byte(tmp_path: Path) -> None:
    body = json.dumps(fixed_length_body("The sky is")).encode()
    request = raw_post(body, request_id="late")
    with FaultInjectionServer(tmp_path, LLAVA_READ_TIMEOUT_SECONDS="20") as server:
        server.wait_until_healthy()
        request = request.replace(b"Content-Length", b"x-ms-request-timeout-ms: 3000\r\nContent-Length")
        with server.slow(), server.connect() as connection:
            connection.sendall(request[:-5])
            time.sleep(2.5)
            connection.sendall(request[-5:])
            record = server.wait_for_record("late")
    assert record["finish_reasons"] in (["deadline"], [])
    assert record["total_ms"] is None or record["total_ms"] < 1500
