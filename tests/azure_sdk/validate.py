"""Reads a folder's endpoint.yml, deployment.yml and jobs/merge.yml as `az ml` would, without a network.

Runs in the SDK's own environment. Fails with the SDK's message; else the last line is JSON: the bodies that would go to
Azure Resource Manager, and the files that would be uploaded as code with their hash.
"""

import argparse
import json
import socket
from pathlib import Path
from typing import Any, NoReturn

from azure.ai.ml import load_job, load_online_deployment, load_online_endpoint
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_object_hash, get_upload_files_from_folder
from azure.ai.ml._utils._endpoint_utils import validate_scoring_script

LOCATION = "eastus"  # a body must name a region; which one makes no difference here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    block_network()
    print(json.dumps({"endpoint": endpoint(folder), **deployment(folder), **job(folder), **code(folder)}))


def block_network() -> None:
    """What passes here passes without Azure, and reports nothing to it."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("the validation tried to reach the network")

    socket.getaddrinfo = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]


def endpoint(folder: Path) -> dict[str, Any]:
    loaded = load_online_endpoint(folder / "endpoint.yml")
    return {"name": loaded.name, **loaded._to_rest_online_endpoint(LOCATION).as_dict()}


def deployment(folder: Path) -> dict[str, Any]:
    loaded = load_online_deployment(folder / "deployment.yml")
    loaded._validate()
    validate_scoring_script(loaded)  # nothing else notices a script that is missing
    names = {"name": loaded.name, "endpointName": loaded.endpoint_name}
    return {
        "deployment": {**names, **loaded._to_rest_object(LOCATION).as_dict()},
        "environment": loaded.environment._to_rest_object().as_dict(),
    }


def job(folder: Path) -> dict[str, Any]:
    loaded = load_job(folder / "jobs" / "merge.yml")
    result = loaded._validate()
    if not result.passed:
        raise ValueError(str(result.error_messages))
    return {"job": loaded._to_dict()}


def code(folder: Path) -> dict[str, Any]:
    ignored = get_ignore_file(folder)
    files = get_upload_files_from_folder(folder, ignore_file=ignored)
    return {"upload": sorted(name for _, name in files), "code_hash": get_object_hash(folder, ignored)}


if __name__ == "__main__":
    main()
