import threading
from collections.abc import Iterator

import pytest
from scripted_server import Response, ScriptedServer, StartServer


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts scripted servers and stops them after the test."""
    started: list[ScriptedServer] = []

    def start(*responses: Response, port: int = 0) -> ScriptedServer:
        server = ScriptedServer(*responses, port=port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
