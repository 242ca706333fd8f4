"""A batch endpoint from nothing to nothing through MLClient."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import Input, MLClient, load_compute
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities._load_functions import load_batch_endpoint, load_model_batch_deployment
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

NAME = "llava-13b-batch"
MEANING = "the meaning of life is to be kind and to keep learning."


@pytest.fixture(scope="module")
def endpoint(client: MLClient, checkout: Path) -> Iterator[str]:
    client.compute.begin_create_or_update(load_compute(checkout / "batch" / "compute.yml")).result()
    client.batch_endpoints.begin_create_or_update(load_batch_endpoint(checkout / "batch" / "endpoint.yml")).result()
    deployment = load_model_batch_deployment(checkout / "batch" / "deployment.yml")
    client.batch_deployments.begin_create_or_update(deployment).result()
    yield NAME
    client.batch_endpoints.begin_delete(NAME).result()
    with pytest.raises(ResourceNotFoundError):
        client.batch_endpoints.get(NAME)


def run(client: MLClient, source: Path, kind: str, output: Path) -> list[list[str]]:
    """The rows that a job over `source` leaves."""
    job = client.batch_endpoints.invoke(NAME, deployment_name="default", input=Input(type=kind, path=str(source)))
    client.jobs.stream(job.name)
    assert client.jobs.get(job.name).status == "Completed"
    client.jobs.download(job.name, output_name="score", download_path=str(output))
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_job_needs_a_deployment(client: MLClient, endpoint: str, checkout: Path) -> None:
    samples = Input(type=AssetTypes.URI_FOLDER, path=str(checkout / "batch" / "samples"))
    with pytest.raises(HttpResponseError, match="default deployment"):
        client.batch_endpoints.invoke(NAME, input=samples)


def test_a_folder_of_everything(
    client: MLClient, endpoint: str, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.jsonl").write_text('{"input_data": {"input_string": ["the meaning of life is"]}}\n{rotten\n')
    (source / "rotten.png").write_bytes(b"no picture")
    (source / "table.csv").write_text("input_string\nthe meaning of life is\n")
    rows = run(client, source, AssetTypes.URI_FOLDER, tmp_path / "out")
    assert [[file, row, answer, error.partition(":")[0]] for file, row, answer, error in rows] == [
        ["good.jsonl", "0", MEANING, ""],
        ["good.jsonl", "1", "", "invalid_json"],
        ["rotten.png", "0", "", "invalid_image"],
        ["table.csv", "0", MEANING, ""],
    ]
    assert "3 of 3 files read, 4 rows done, 2 of them errors" in capfd.readouterr().out


def test_one_file(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input_data": {"input_string": ["the meaning of life is"]}}\n')
    rows = run(client, lines, AssetTypes.URI_FILE, tmp_path / "out")
    assert rows == [["lines.jsonl", "0", MEANING, ""]]
