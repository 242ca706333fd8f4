"""Endpoint.abort(), called while another thread waits for an answer."""

import socket
import threading

import pytest

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
    assert errors[0].status is None


def test_abort_without_a_request_does_nothing() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/score")
    endpoint.abort()
    with pytest.raises(EndpointError):
        endpoint.score({})
    endpoint.abort()
