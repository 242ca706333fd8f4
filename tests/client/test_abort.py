"""Endpoint.abort(), called while another thread waits for an answer."""

import socket
import threading

import pytest
from scripted_server import StartServer

from llava_serving.client import Endpoint, EndpointError


def test_abort_ends_a_request_that_waits_for_its_answer() -> None:
    """The endpoint sees the end of the connection, and the waiting thread gets an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/score")
        errors: list[EndpointError] = []

        def ask() -> None:
            with pytest.raises(EndpointError) as raised:
                list(endpoint.stream({}))
            errors.append(raised.value)

        thread = threading.Thread(target=ask)
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(65536).startswith(b"POST /score")
            endpoint.abort()
            thread.join(10)
            assert not thread.is_alive()
            while connection.recv(65536):
                pass
        listener.settimeout(2)
        with pytest.raises(TimeoutError):  # the request is not sent again
            listener.accept()
    assert errors[0].status is None


def test_abort_ends_the_wait_for_a_retry(start_server: StartServer) -> None:
    server = start_server((503, {"Retry-After": "60"}, b"{}"))
    endpoint = Endpoint(server.url)
    errors: list[EndpointError] = []

    def ask() -> None:
        with pytest.raises(EndpointError) as raised:
            endpoint.score({})
        errors.append(raised.value)

    thread = threading.Thread(target=ask)
    thread.start()
    server.wait_for_requests(1)
    while thread.is_alive():  # the thread may not have read the response yet
        endpoint.abort()
        thread.join(0.05)
    assert len(server.request_headers) == 1


def test_abort_without_a_request_does_nothing() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/score", retries=0)
    endpoint.abort()
    with pytest.raises(EndpointError):
        endpoint.score({})
    endpoint.abort()
