"""Azure's SDK connected to the stand-in.

These tests run in the SDK's environment, which lacks the service's packages:
`.venv-azure/bin/python -m pytest --confcutdir tests/azure_sdk tests/azure_sdk`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.constants._endpoint import EndpointInvokeFields
from azure.ai.ml.entities import Model

from standin.client import local_client

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "benchmarks", "tests")


@pytest.fixture(scope="session")
def client() -> MLClient:
    ml_client = local_client()
    ml_client.models.create_or_update(Model(name="llava-13b-v0", path=str(ROOT / "demo"), type="custom_model"))
    return ml_client


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Returns a copy of the project without virtual environments, because the SDK looks at every file in them."""
    folder = tmp_path_factory.mktemp("checkout") / "llava"
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    shutil.copy(ROOT / ".amlignore", folder)
    for name in ("python", "llava-serving"):
        wrapper = folder / ".venv" / "bin" / name
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\nexec "{ROOT}/.venv/bin/{name}" "$@"\n')
        wrapper.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _forget_deployment_name() -> Iterator[None]:
    """Removes the name of a deployment that invoke() leaves in the SDK's headers for all later requests."""
    yield
    EndpointInvokeFields.DEFAULT_HEADER.pop(EndpointInvokeFields.MODEL_DEPLOYMENT, None)
