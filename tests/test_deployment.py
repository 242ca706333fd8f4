"""What would run on Azure: the YAML files as Azure's own SDK reads them, held against the code they describe."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from llava_serving.cli import server_environment
from llava_serving.engine.generation import GRACE_SECONDS
from llava_serving.errors import StartupError
from llava_serving.settings import Settings
from llava_serving.weights.model_dir import PARTS

ROOT = Path(__file__).resolve().parents[1]
AZURE_PYTHON = ROOT / ".venv-azure" / "bin" / "python"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
AZURE_MOST_SECONDS = 180  # of request_timeout_ms; the SDK lets more pass, Azure does not
LOAD_SECONDS = 54_000 / 50  # 54 GB from storage at 50 MB/s


def validate(folder: Path) -> subprocess.CompletedProcess[str]:
    assert AZURE_PYTHON.exists(), ".venv-azure is missing; `make test` or `make .venv-azure/installed` builds it"
    command = [AZURE_PYTHON, ROOT / "tests" / "azure_sdk" / "validate.py", folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def validated(folder: Path) -> dict[str, Any]:
    result = validate(folder)
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return loaded


@pytest.fixture(scope="module")
def accepted() -> dict[str, Any]:
    """What the SDK makes of this project."""
    return validated(ROOT)


@pytest.fixture(scope="module")
def properties(accepted: dict[str, Any]) -> dict[str, Any]:
    """Of the deployment, as they would go to Azure Resource Manager."""
    found: dict[str, Any] = accepted["deployment"]["properties"]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the validation reads, to be changed."""
    (tmp_path / "jobs").mkdir()
    for name in ("endpoint.yml", "deployment.yml", "jobs/merge.yml", "conda.yaml", "score.py", ".amlignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def seconds(duration: str) -> float:
    """Of the ISO 8601 durations that the SDK writes."""
    match = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    assert match, duration
    hours, minutes, rest = match.groups("0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_the_sdk_accepts_both_files_as_parts_of_one_endpoint(accepted: dict[str, Any]) -> None:
    assert accepted["deployment"]["endpointName"] == accepted["endpoint"]["name"]
    assert accepted["deployment"]["properties"]["endpointComputeType"] == "Managed"
    assert accepted["endpoint"]["properties"]["authMode"] == "Key"


@pytest.mark.parametrize("file", ["endpoint.yml", "deployment.yml", "jobs/merge.yml"])
def test_the_sdk_refuses_an_unknown_key(checkout: Path, file: str) -> None:
    with (checkout / file).open("a") as yml:
        yml.write("\nmax_concurrency: 1\n")
    result = validate(checkout)
    assert result.returncode != 0
    assert "max_concurrency" in result.stderr
    assert "Unknown field" in result.stderr


@pytest.mark.parametrize("missing", ["conda.yaml", "score.py"])
def test_the_sdk_refuses_a_deployment_without_its_files(checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    result = validate(checkout)
    assert result.returncode != 0
    assert missing in result.stderr


def test_a_request_may_take_what_azure_allows(properties: dict[str, Any]) -> None:
    assert 0 < seconds(properties["requestSettings"]["requestTimeout"]) <= AZURE_MOST_SECONDS


def settings(properties: dict[str, Any]) -> Settings:
    return Settings.from_environment(properties["environmentVariables"])


def test_the_server_runs_as_on_a_desk(properties: dict[str, Any]) -> None:
    variables = properties["environmentVariables"]
    own = {name: value for name, value in variables.items() if name.startswith("LLAVA_")}
    desk = server_environment(own)
    assert variables.items() >= {name: desk[name] for name in desk if name != "AML_APP_ROOT"}.items()


def test_every_request_that_azure_admits_is_let_in_and_has_a_thread(properties: dict[str, Any]) -> None:
    admitted = 2 * properties["requestSettings"]["maxConcurrentRequestsPerInstance"]
    assert admitted == settings(properties).max_live_seqs
    threads = int(properties["environmentVariables"]["GUNICORN_CMD_ARGS"].removeprefix("--threads "))
    assert threads >= admitted + 2  # liveness and readiness


def test_the_service_answers_before_azure_gives_up(properties: dict[str, Any]) -> None:
    azure = seconds(properties["requestSettings"]["requestTimeout"])
    assert settings(properties).request_timeout_seconds + GRACE_SECONDS < azure


def test_a_stream_is_not_held_back_for_application_insights(properties: dict[str, Any]) -> None:
    assert properties["environmentVariables"]["APP_INSIGHTS_LOG_RESPONSE_ENABLED"] == "false"


def test_there_is_one_copy_of_the_model(properties: dict[str, Any]) -> None:
    assert properties["environmentVariables"]["WORKER_COUNT"] == "1"


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_a_probe_waits_for_54_gb(properties: dict[str, Any], probe: str) -> None:
    settings = properties[probe]
    patience = seconds(settings["initialDelay"]) + settings["failureThreshold"] * seconds(settings["period"])
    assert patience >= LOAD_SECONDS
    assert seconds(settings["timeout"]) <= seconds(settings["period"])


def test_the_worker_may_take_as_long_as_liveness_allows(properties: dict[str, Any]) -> None:
    liveness = properties["livenessProbe"]
    allowed = seconds(liveness["initialDelay"]) + liveness["failureThreshold"] * seconds(liveness["period"])
    assert int(properties["environmentVariables"]["WORKER_TIMEOUT"]) >= allowed


def test_the_service_accepts_its_settings(properties: dict[str, Any]) -> None:
    variables = properties["environmentVariables"]
    assert Settings.from_environment(variables).device == "cuda"
    with pytest.raises(StartupError, match="LLAVA_MAX_SEQUENCE is not a setting"):
        Settings.from_environment(variables | {"LLAVA_MAX_SEQUENCE": "4"})


def test_conda_installs_the_versions_that_were_tested(accepted: dict[str, Any]) -> None:
    conda = yaml.safe_load(accepted["environment"]["properties"]["condaFile"])
    python, _, pip = conda["dependencies"]
    assert sorted(pip["pip"]) == sorted(PROJECT["dependencies"])
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_the_code_that_is_uploaded_is_the_service_and_the_demo_model(accepted: dict[str, Any]) -> None:
    upload = set(accepted["upload"])
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "llava_serving").rglob("*.py")}
    assert upload >= {"score.py", *modules}
    parts = {tuple(name.split("/")[:2]) for name in upload - modules - {"score.py"}}
    assert parts == {("demo", part) for part in PARTS}


def test_the_upload_leaves_the_rest_of_a_checkout_behind(checkout: Path) -> None:
    wanted = ["src/llava_serving/engine/a.py", *(f"demo/{part}/config.json" for part in PARTS)]
    others = [
        ".git/config", ".venv/bin/python", ".venv-azure/lib/a.py", ".ci/run", "README.md", "tests/test_a.py",
        "tests/src/a.py", "benchmarks/score.py", "demo/recipe/train.py", "demo/pictures/a.png",
        "src/llava_serving/__pycache__/a.pyc", "src/llava_serving.egg-info/PKG-INFO", "llava-13b-v0/base/model.bin",
    ]  # fmt: skip
    for name in wanted + others:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    assert validated(checkout)["upload"] == sorted(["score.py", *wanted])


def test_azure_sees_that_code_has_changed_and_only_code(checkout: Path) -> None:
    """The SDK uploads nothing when its hash has not changed, and for the hash it skips folders whole."""
    deep, test = checkout / "src" / "llava_serving" / "engine" / "a.py", checkout / "tests" / "test_a.py"
    hashes = []
    for file, text in ((deep, "1"), (test, "1"), (deep, "2")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        hashes.append(validated(checkout)["code_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_uploaded_code_starts_by_itself(accepted: dict[str, Any], tmp_path: Path) -> None:
    for name in accepted["upload"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    variables = accepted["deployment"]["properties"]["environmentVariables"] | {"LLAVA_DEVICE": "cpu"}
    start = "import score, llava_serving; score.init(); print(llava_serving.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[-1]).is_relative_to(tmp_path)


def test_the_job_s_command_merges_and_checks(accepted: dict[str, Any], tmp_path: Path) -> None:
    """As the job runs it, in what is uploaded, on the demo's parts."""
    job = accepted["job"]
    for name in accepted["upload"]:
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "code" / name)
    command = job["component"]["command"].replace("${{outputs.model}}", str(tmp_path / "model"))
    for name in job["inputs"]:
        command = command.replace(f"${{{{inputs.{name}}}}}", str(ROOT / "demo" / name))
    assert "${{" not in command
    assert set(job["inputs"]) == set(PARTS)
    python = command.replace("python ", f"{sys.executable} ")
    result = subprocess.run(["bash", "-c", python], cwd=tmp_path / "code", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "talks     yes" in result.stdout
    assert [folder.name for folder in (tmp_path / "model").iterdir()] == ["llava-13b-v0"]


def test_the_job_registers_a_model(accepted: dict[str, Any]) -> None:
    output = accepted["job"]["outputs"]["model"]
    assert output["type"] == "custom_model"
    assert output["name"] == "llava-13b-v0"
