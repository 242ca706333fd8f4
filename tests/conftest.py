import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_parts
from reference import Reference, write_merged
from server import ROOT, Server

from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import DEMO, PartsFolder

LONGEST_FILES = ("test_gpu_benchmark.py", "test_demo.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use the server process as slow, and runs the longest files first.

    A long file at the end would leave one of the two workers without work for minutes.
    """
    for item in items:
        if isinstance(item, pytest.Function) and "demo_server" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes settings of the developer's shell."""
    for name in list(os.environ):
        if name.startswith(("LLAVA_", "AZUREML_", "AML_", "GUNICORN_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def parts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with base/, delta/ and vision/ of random weights."""
    return write_parts(tmp_path_factory.mktemp("random") / "parts")


@pytest.fixture(scope="session")
def merged(parts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the same weights merged by tests/reference.py, in Hugging Face LLaVA layout."""
    return write_merged(parts_dir, tmp_path_factory.mktemp("merged") / "llava")


@pytest.fixture(scope="session")
def reference(merged: Path) -> Reference:
    return Reference(merged)


@pytest.fixture(scope="session")
def loaded(parts_dir: Path) -> LoadedModel:
    return load_model(PartsFolder(parts_dir), "cpu", "float32")


@pytest.fixture(scope="session")
def demo_loaded() -> LoadedModel:
    return load_model(PartsFolder(DEMO), "cpu", "float32")


@pytest.fixture(scope="session")
def demo_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(write_merged(DEMO, tmp_path_factory.mktemp("demo") / "llava"))


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Returns a running azmlinfsrv on the embedded demo model."""
    with Server(
        log=tmp_path_factory.mktemp("server") / "log",
        environment={"AML_APP_ROOT": str(ROOT)},
    ) as server:
        server.wait_until_healthy()
        yield server
