"""Validates a folder's YAML files as `az ml` does, without a network.

Runs in the SDK's environment. Fails with the SDK's message. Otherwise the last line is JSON: the bodies that `az ml`
sends to Azure Resource Manager, by file, and the files that it uploads as code, with their hash.
"""

import argparse
import json
import socket
from pathlib import Path
from typing import Any, NoReturn

from azure.ai.ml import load_batch_endpoint, load_compute, load_job, load_online_deployment, load_online_endpoint
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_object_hash, get_upload_files_from_folder
from azure.ai.ml._utils._endpoint_utils import validate_scoring_script
from azure.ai.ml.entities._load_functions import load_model_batch_deployment

LOCATION = "eastus"  # a body must have a region, and this test does not depend on it


ONLINE_ENDPOINTS = ("endpoint.yml", "variants/kubernetes_endpoint.yml")
ONLINE_DEPLOYMENTS = (
    "deployment.yml", "variants/small_gpu.yml", "variants/kubernetes_deployment.yml", "variants/demo.yml",
)  # fmt: skip
JOBS = ("jobs/merge.yml", "jobs/evaluate.yml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    block_network()
    bodies: dict[str, Any] = {file: online_endpoint(folder / file) for file in ONLINE_ENDPOINTS}
    bodies |= {file: online_deployment(folder / file) for file in ONLINE_DEPLOYMENTS}
    bodies["batch/endpoint.yml"] = batch_endpoint(folder / "batch" / "endpoint.yml")
    bodies["batch/deployment.yml"] = batch_deployment(folder / "batch" / "deployment.yml")
    bodies["batch/compute.yml"] = compute(folder / "batch" / "compute.yml")
    bodies |= {file: job(folder / file) for file in JOBS}
    print(json.dumps(bodies | code(folder)))


def block_network() -> None:
    """Makes every connection raise, so that the validation needs no Azure and sends no telemetry."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("the validation tried to reach the network")

    socket.getaddrinfo = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]


def online_endpoint(file: Path) -> dict[str, Any]:
    loaded = load_online_endpoint(file)
    return {"name": loaded.name, **loaded._to_rest_online_endpoint(LOCATION).as_dict()}


def online_deployment(file: Path) -> dict[str, Any]:
    loaded = load_online_deployment(file)
    loaded._validate()
    validate_scoring_script(loaded)  # no other check notices a missing script
    return {
        "name": loaded.name,
        "endpointName": loaded.endpoint_name,
        "environment": loaded.environment._to_rest_object().as_dict(),
        **loaded._to_rest_object(LOCATION).as_dict(),
    }


def batch_endpoint(file: Path) -> dict[str, Any]:
    loaded = load_batch_endpoint(file)
    return {"name": loaded.name, **loaded._to_rest_batch_endpoint(LOCATION).as_dict()}


def batch_deployment(file: Path) -> dict[str, Any]:
    # The public load_batch_deployment refuses `settings`, which the documentation prescribes.
    loaded = load_model_batch_deployment(file)
    validate_scoring_script(loaded)
    environment, loaded.environment = loaded.environment, None  # the body has only the id of the registered environment
    return {
        "name": loaded.name,
        "endpointName": loaded.endpoint_name,
        "environment": environment._to_rest_object().as_dict(),
        **loaded._to_rest_object(LOCATION).as_dict(),
    }


def compute(file: Path) -> dict[str, Any]:
    loaded = load_compute(file)
    return {"name": loaded.name, **loaded._to_rest_object().as_dict()}


def job(file: Path) -> dict[str, Any]:
    loaded = load_job(file)
    result = loaded._validate()
    if not result.passed:
        raise ValueError(str(result.error_messages))
    return dict(loaded._to_dict())


def code(folder: Path) -> dict[str, Any]:
    ignored = get_ignore_file(folder)
    files = get_upload_files_from_folder(folder, ignore_file=ignored)
    return {"upload": sorted(name for _, name in files), "code_hash": get_object_hash(folder, ignored)}


if __name__ == "__main__":
    main()
