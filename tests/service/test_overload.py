"""More requests than the real server process runs at a time: they wait, and beyond the queue they get 429."""

import threading
import time
from concurrent.futures import as_completed

from fault_injection import FaultInjectionServer
from server import TIMEOUT_SECONDS, Server
from server_requests import error_of, fixed_length_body, score_in_background, streamed_text


def test_requests_beyond_the_queue_get_429_at_once_with_retry_after(
    single_seq_server: FaultInjectionServer, full_text: str
) -> None:
    server = single_seq_server
    body = fixed_length_body("The sky is", stream=True)
    with server.slow(), server.stream(body, x_ms_client_request_id="running") as running:
        events = iter(running)
        first_event = next(events)
        two_sequences = fixed_length_body("1 2 3", n=2, max_new_tokens=2)
        two_prompts = fixed_length_body("1 2 3", "a", max_new_tokens=2)
        for too_large in (two_sequences, two_prompts):  # the queue has room for one sequence, not for both
            response = server.score(too_large)
            assert (response.status, response.json["error"]["code"]) == (429, "overloaded")
        short = fixed_length_body("1 2 3", max_new_tokens=3)
        futures = score_in_background(server, short, short)
        refused = next(as_completed(futures, TIMEOUT_SECONDS)).result()
        assert server.request("GET", "/").status == 200
        assert refused.status == 429
        error = refused.json["error"]
        assert set(error) == {"code", "message", "param", "type"}
        assert (error["code"], error["param"], error["type"]) == ("overloaded", None, "rate_limit_error")
        assert refused.headers["retry-after"].isdecimal()
        assert int(refused.headers["retry-after"]) >= 1
        with server.stream(fixed_length_body("1 2 3", stream=True)) as stream:
            assert stream.status == 429
            assert int(stream.headers["retry-after"]) >= 1
            assert error_of(stream)["code"] == "overloaded"
        assert not server.request_records("running")  # the first request was running all the time
        server.disable("slow")
        assert streamed_text([first_event, *events]) == full_text
    assert sorted(future.result(TIMEOUT_SECONDS).status for future in futures) == [200, 429]


def test_the_probe_gets_200_while_20_requests_are_unanswered(demo_server: Server) -> None:
    body = fixed_length_body("a", "a", "a", max_new_tokens=300)
    statuses: list[int] = []
    clients = [threading.Thread(target=lambda: statuses.append(demo_server.score(body).status)) for _ in range(20)]
    for client in clients:
        client.start()
    time.sleep(0.2)
    assert demo_server.request("GET", "/").status == 200
    assert not statuses
    for client in clients:
        client.join()
    assert statuses == [200] * 20
