"""Azure's own SDK, and a workspace of this machine for it. These tests run in the SDK's environment, without the
service's packages: `.venv-azure/bin/python -m pytest --confcutdir tests/azure_sdk tests/azure_sdk`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.constants._endpoint import EndpointInvokeFields
from azure.ai.ml.entities import Model

from standin.client import local_client

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "benchmarks", "tests")


@pytest.fixture(scope="session")
def client() -> MLClient:
    made = local_client()
    made.models.create_or_update(Model(name="llava-13b-v0", path=str(ROOT / "demo"), type="custom_model"))
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project without its virtual environments, whose every file the SDK looks at before it leaves them out."""
    folder = tmp_path_factory.mktemp("checkout") / "llava"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    shutil.copy(ROOT / ".amlignore", folder)
    for name in ("python", "llava-serving"):
        wrapper = folder / ".venv" / "bin" / name
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\nexec "{ROOT}/.venv/bin/{name}" "$@"\n')
        wrapper.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_deployment_left() -> Iterator[None]:
    """An invoke() that names a deployment leaves the name in the SDK's headers of every later one, of all endpoints."""
    yield
    EndpointInvokeFields.DEFAULT_HEADER.pop(EndpointInvokeFields.MODEL_DEPLOYMENT, None)
