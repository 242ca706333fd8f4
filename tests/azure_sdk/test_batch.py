"""The life of a batch endpoint through MLClient."""

import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import Input, MLClient, Output, load_compute
from azure.ai.ml._artifacts._artifact_utilities import download_artifact_from_aml_uri
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import CodeConfiguration, Data
from azure.ai.ml.entities._load_functions import load_batch_endpoint, load_model_batch_deployment
from azure.ai.ml.exceptions import JobException
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
    """Runs a job over `source` and returns the rows of its results."""
    job = client.batch_endpoints.invoke(NAME, deployment_name="default", input=Input(type=kind, path=str(source)))
    client.jobs.stream(job.name)
    assert client.jobs.get(job.name).status == "Completed"
    client.jobs.download(job.name, output_name="score", download_path=str(output))
    return results(output)


def results(output: Path) -> list[list[str]]:
    """Returns the rows of all mini-batches."""
    rows = []
    for path in output.rglob("predictions/*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))
    return rows


FLAKY_SCRIPT = """
import collections, os, pathlib
import pandas as pd
attempts = collections.Counter()
def init():
    pass
def run(mini_batch):
    name = pathlib.Path(mini_batch[0]).name
    attempts[name] += 1
    if attempts[name] <= int(name.partition(".")[0]):
        if attempts[name] == 1:  # Azure's rule: fewer items than files is a failure
            return pd.DataFrame([])
        raise RuntimeError(f"{name}, attempt {attempts[name]}")
    return pd.DataFrame([[name, attempts[name]]])
"""


@pytest.mark.parametrize(
    ("threshold", "files", "expected"),
    [(-1, "0.jsonl 1.jsonl 2.jsonl 9.jsonl", "Completed"), (0, "0.jsonl 9.jsonl", "Failed"), (-1, "9.jsonl", "Failed")],
)
def test_failed_mini_batches_are_retried(
    client: MLClient, endpoint: str, checkout: Path, tmp_path: Path, threshold: int, files: str, expected: str
) -> None:
    """The number in the name of a file says how often the file fails."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "score.py").write_text(FLAKY_SCRIPT)
    (tmp_path / "source").mkdir()
    for name in files.split():
        (tmp_path / "source" / name).write_text("[]")
    deployment = load_model_batch_deployment(checkout / "batch" / "deployment.yml")
    deployment.name = "flaky"
    deployment.code_configuration = CodeConfiguration(str(tmp_path / "code"), "score.py")
    deployment.settings.output_action = "append_row"
    deployment.settings.mini_batch_size = 1
    deployment.settings.error_threshold = threshold
    deployment.settings.retry_settings.max_retries = 2
    client.batch_deployments.begin_create_or_update(deployment).result()
    source = Input(type=AssetTypes.URI_FOLDER, path=str(tmp_path / "source"))
    job = client.batch_endpoints.invoke(NAME, deployment_name="flaky", input=source)
    while (status_now := client.jobs.get(job.name).status) == "Running":
        time.sleep(0.1)
    assert status_now == expected
    if expected == "Completed":
        client.jobs.download(job.name, output_name="score", download_path=str(tmp_path / "out"))
        assert (tmp_path / "out" / "predictions.csv").read_text() == "0.jsonl,1\n1.jsonl,2\n2.jsonl,3\n"


def test_job_with_an_unknown_model_fails(client: MLClient, endpoint: str, checkout: Path) -> None:
    deployment = load_model_batch_deployment(checkout / "batch" / "deployment.yml")
    deployment.name = "no-model"
    deployment.model = "azureml:unknown:7"
    client.batch_deployments.begin_create_or_update(deployment).result()
    source = Input(type=AssetTypes.URI_FOLDER, path=str(checkout / "batch" / "samples"))
    job = client.batch_endpoints.invoke(NAME, deployment_name="no-model", input=source)
    with pytest.raises(JobException):
        client.jobs.stream(job.name)
    assert client.jobs.get(job.name).status == "Failed"


def test_invoke_without_a_default_deployment_is_refused(client: MLClient, endpoint: str, checkout: Path) -> None:
    samples = Input(type=AssetTypes.URI_FOLDER, path=str(checkout / "batch" / "samples"))
    with pytest.raises(HttpResponseError, match="default deployment"):
        client.batch_endpoints.invoke(NAME, input=samples)


def test_folder_with_jsonl_csv_and_bad_inputs(
    client: MLClient, endpoint: str, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.jsonl").write_text('{"input_data": {"input_string": ["the meaning of life is"]}}\n{not json\n')
    (source / "not_image.png").write_bytes(b"not an image")
    (source / "table.csv").write_text("input_string\nthe meaning of life is\n")
    rows = run(client, source, AssetTypes.URI_FOLDER, tmp_path / "out")
    assert [[file, row, answer, error.partition(":")[0]] for file, row, answer, error in rows] == [
        ["good.jsonl", "0", MEANING, ""],
        ["good.jsonl", "1", "", "invalid_json"],
        ["not_image.png", "0", "", "invalid_image"],
        ["table.csv", "0", MEANING, ""],
    ]
    assert re.search(r"batch: 4 rows \[.*, 3 of 3 files read, 2 errors\]", capfd.readouterr().out)


def test_job_continues_from_the_answers_of_a_cancelled_job(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    """A job is submitted again after its machine was removed."""
    lines = tmp_path / "lines.jsonl"
    request = {"input_data": ["the"], "params": {"max_new_tokens": 150, "ignore_eos": True}}
    lines.write_text(f"{json.dumps(request)}\n" * 200)
    output = "azureml://datastores/workspaceblobstore/paths/answers"

    def start() -> str:
        job = client.batch_endpoints.invoke(
            NAME,
            deployment_name="default",
            input=Input(type=AssetTypes.URI_FILE, path=str(lines)),
            outputs={"score": Output(type=AssetTypes.URI_FOLDER, path=output)},
        )
        return str(job.name)

    def saved_answers(folder: str) -> list[str]:
        download_artifact_from_aml_uri(output, str(tmp_path / folder), client.datastores)
        return [line for path in (tmp_path / folder).rglob("kept/*/*.jsonl") for line in path.read_text().splitlines()]

    first = start()
    deadline = time.monotonic() + 120
    while len(before := saved_answers(f"before-{time.monotonic()}")) < 1:
        assert time.monotonic() < deadline
        time.sleep(1)
    client.jobs.begin_cancel(first).result()
    assert client.jobs.get(first).status == "Canceled"
    client.jobs.stream(start())
    client.jobs.stream(start())  # replaces the results, and adds none
    after = saved_answers("after")
    assert set(before) <= set(after)
    assert len(after) == 200, "no row was answered twice"
    assert [row[1] for row in results(tmp_path / "after")] == [str(row) for row in range(200)]


def test_registered_folder_as_input_and_list_of_jobs(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jsonl").write_text('{"input_data": ["the meaning of life is"]}\n')
    client.data.create_or_update(Data(name="questions", type=AssetTypes.URI_FOLDER, path=str(tmp_path / "source")))
    source = Input(type=AssetTypes.URI_FOLDER, path="azureml:questions@latest")
    job = client.batch_endpoints.invoke(NAME, deployment_name="default", input=source)
    client.jobs.stream(job.name)
    client.jobs.download(job.name, output_name="score", download_path=str(tmp_path / "out"))
    assert results(tmp_path / "out") == [["a.jsonl", "0", MEANING, ""]]
    assert job.name in [listed.name for listed in client.batch_endpoints.list_jobs(NAME)]
    assert job.name in [listed.name for listed in client.batch_deployments.list_jobs(NAME, name="default")]


def test_missing_input_fails_the_job(client: MLClient, endpoint: str) -> None:
    missing = Input(type=AssetTypes.URI_FOLDER, path="azureml://datastores/workspaceblobstore/paths/missing")
    job = client.batch_endpoints.invoke(NAME, deployment_name="default", input=missing)
    with pytest.raises(JobException):
        client.jobs.stream(job.name)


def test_one_file_as_input(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input_data": {"input_string": ["the meaning of life is"]}}\n')
    rows = run(client, lines, AssetTypes.URI_FILE, tmp_path / "out")
    assert rows == [["lines.jsonl", "0", MEANING, ""]]
