from collections.abc import Iterator

import pytest
from fault_injection import FaultInjectionServer
from scoring import running_scorer
from server import Server
from server_requests import fixed_length_body, text_of

from llava_serving.service.scorer import Scorer
from llava_serving.weights.loader import LoadedModel


@pytest.fixture(scope="module")
def scorer(loaded: LoadedModel) -> Iterator[Scorer]:
    """Returns a scorer of the random checkpoint. Its default of max_new_tokens is 7."""
    with running_scorer(loaded, default_max_new_tokens=7) as scorer:
        yield scorer


@pytest.fixture(scope="session")
def single_seq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultInjectionServer]:
    """Returns a server that runs one sequence at a time, and lets one more wait."""
    with FaultInjectionServer(
        tmp_path_factory.mktemp("single_seq_server"),
        GUNICORN_CMD_ARGS="--config python:gunicorn_config --threads 18",
        LLAVA_MAX_NUM_SEQS="1",
        LLAVA_MAX_QUEUED_SEQS="1",
        LLAVA_MAX_SEQUENCES="2",
    ) as server:
        server.wait_until_healthy()
        yield server


@pytest.fixture(scope="session")
def full_text(demo_server: Server) -> str:
    """Returns the answer to `fixed_length_body("The sky is")` without faults and time limits."""
    return text_of(demo_server, fixed_length_body("The sky is"))
