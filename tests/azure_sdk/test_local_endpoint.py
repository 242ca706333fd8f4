"""A local endpoint (`--local`) of variants/local.yml: Azure's SDK builds and starts it, with a fake of Docker."""

import json
import sys
from pathlib import Path

import azure.ai.ml._local_endpoints.docker_client as docker_client
import pytest
from azure.ai.ml import MLClient, load_online_deployment, load_online_endpoint
from azure.ai.ml.constants._endpoint import LocalEndpointConstants
from fake_docker import Docker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    fake = Docker(ROOT / ".venv" / "bin" / "python", tmp_path)
    monkeypatch.setitem(sys.modules, "docker", fake)
    monkeypatch.setattr(docker_client, "docker", fake)
    monkeypatch.setattr(LocalEndpointConstants, "DEFAULT_STARTUP_WAIT_TIME_SECONDS", 0)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the SDK writes what it builds
    return fake


def test_a_local_endpoint_answers_and_is_deleted(client: MLClient, docker: Docker) -> None:
    endpoint, deployment = (
        load_online_endpoint(ROOT / "endpoint.yml"),
        load_online_deployment(ROOT / "variants/local.yml"),
    )
    endpoint.name = deployment.endpoint_name
    client.online_endpoints.begin_create_or_update(endpoint, local=True)
    client.online_deployments.begin_create_or_update(deployment, local=True)
    try:
        assert docker.dockerfiles[0].startswith(f"FROM {deployment.environment.image}\n")
        assert "conda env create -n inf-conda-env --file conda.yml" in docker.dockerfiles[0]
        answer = client.online_endpoints.invoke(endpoint.name, request_file=ROOT / "scripts/smoke.json", local=True)
        assert json.loads(answer) == [{"0": "the digit 3"}]
        log = client.online_deployments.get_logs("blue", endpoint_name=endpoint.name, lines=100, local=True)
        assert "llava_serving.service.request_log" in log
    finally:
        client.online_endpoints.begin_delete(endpoint.name, local=True)
    assert docker.list({}) == []
