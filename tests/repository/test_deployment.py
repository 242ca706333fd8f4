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

from llava_serving.engine.request import GRACE_SECONDS
from llava_serving.errors import StartupError
from llava_serving.settings import Settings
from llava_serving.tools.cli import server_environment
from llava_serving.weights.model_dir import PARTS

ROOT = Path(__file__).resolve().parents[2]
AZURE_PYTHON = ROOT / ".venv-azure" / "bin" / "python"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEMO = "variants/demo.yml"
ONLINE = ("deployment.yml", "variants/small_gpu.yml", "variants/kubernetes_deployment.yml", DEMO)
OTHERS = (
    "endpoint.yml", "variants/kubernetes_endpoint.yml", "jobs/merge.yml",
    "batch/endpoint.yml", "batch/deployment.yml", "batch/compute.yml",
)  # fmt: skip
FILES = (*ONLINE, *OTHERS, "conda.yaml", "batch/conda.yaml", "score.py", "batch/score.py", ".amlignore")
AZURE_MOST_SECONDS = 180  # of request_timeout_ms; the SDK lets more pass, Azure does not
LOAD_SECONDS = 54_000 / 50  # 54 GB from storage at 50 MB/s
DEMO_SECONDS = 300  # ten times what it takes on two shared cores


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


@pytest.fixture(scope="module", params=ONLINE)
def properties(accepted: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of each online deployment, as they would go to Azure Resource Manager."""
    found: dict[str, Any] = accepted[request.param]["properties"]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the validation reads, to be changed."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def seconds(duration: str) -> float:
    """Of the ISO 8601 durations that the SDK writes."""
    match = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    assert match, duration
    hours, minutes, rest = match.groups("0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


@pytest.mark.parametrize(
    ("endpoint", "deployment", "compute", "auth"),
    [
        ("endpoint.yml", "deployment.yml", "Managed", "Key"),
        ("endpoint.yml", "variants/small_gpu.yml", "Managed", "Key"),
        ("variants/kubernetes_endpoint.yml", "variants/kubernetes_deployment.yml", "Kubernetes", "Key"),
        ("batch/endpoint.yml", "batch/deployment.yml", None, "aadToken"),
    ],
)
def test_the_sdk_accepts_the_files_as_parts_of_one_endpoint(
    accepted: dict[str, Any], endpoint: str, deployment: str, compute: str | None, auth: str
) -> None:
    assert accepted[deployment]["endpointName"] == accepted[endpoint]["name"]
    assert accepted[deployment]["properties"].get("endpointComputeType") == compute
    assert accepted[endpoint]["properties"]["authMode"] == auth


def test_the_demo_model_s_deployment_has_an_endpoint_of_its_own_and_no_gpu(accepted: dict[str, Any]) -> None:
    assert accepted[DEMO]["endpointName"] != accepted["endpoint.yml"]["name"]
    assert "model" not in accepted[DEMO]["properties"]
    assert accepted[DEMO]["properties"]["instanceType"] == "Standard_DS3_v2"


def test_deployments_have_an_identity_of_their_own(accepted: dict[str, Any]) -> None:
    for file in ("endpoint.yml", "variants/kubernetes_endpoint.yml"):
        assert accepted[file]["identity"]["type"] == "SystemAssigned"


@pytest.mark.parametrize("file", [*ONLINE, *OTHERS])
def test_the_sdk_refuses_an_unknown_key(checkout: Path, file: str) -> None:
    with (checkout / file).open("a") as yml:
        yml.write("\nmax_concurrency: 1\n")
    result = validate(checkout)
    assert result.returncode != 0
    assert "max_concurrency" in result.stderr
    assert "Unknown field" in result.stderr


@pytest.mark.parametrize("missing", ["conda.yaml", "score.py", "batch/conda.yaml", "batch/score.py"])
def test_the_sdk_refuses_a_deployment_without_its_files(checkout: Path, missing: str) -> None:
    (checkout / missing).unlink()
    result = validate(checkout)
    assert result.returncode != 0
    assert Path(missing).name in result.stderr


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
    assert admitted == settings(properties).max_live_seqs >= settings(properties).max_sequences
    threads = int(properties["environmentVariables"]["GUNICORN_CMD_ARGS"].removeprefix("--threads "))
    assert threads >= admitted + 2  # liveness and readiness


def test_the_service_answers_before_azure_gives_up(properties: dict[str, Any]) -> None:
    azure = seconds(properties["requestSettings"]["requestTimeout"])
    assert settings(properties).request_timeout_seconds + GRACE_SECONDS < azure


def test_a_stream_is_not_held_back_for_application_insights(properties: dict[str, Any]) -> None:
    assert properties["appInsightsEnabled"]
    assert properties["environmentVariables"]["APP_INSIGHTS_LOG_RESPONSE_ENABLED"] == "false"


def test_there_is_one_copy_of_the_model(properties: dict[str, Any]) -> None:
    assert properties["environmentVariables"]["WORKER_COUNT"] == "1"


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_a_probe_waits_for_the_model(properties: dict[str, Any], probe: str) -> None:
    settings = properties[probe]
    patience = seconds(settings["initialDelay"]) + settings["failureThreshold"] * seconds(settings["period"])
    assert patience >= (LOAD_SECONDS if "model" in properties else DEMO_SECONDS)
    assert seconds(settings["timeout"]) <= seconds(settings["period"])


def test_the_worker_may_take_as_long_as_liveness_allows(properties: dict[str, Any]) -> None:
    liveness = properties["livenessProbe"]
    allowed = seconds(liveness["initialDelay"]) + liveness["failureThreshold"] * seconds(liveness["period"])
    assert int(properties["environmentVariables"]["WORKER_TIMEOUT"]) >= allowed


def test_the_service_accepts_its_settings(properties: dict[str, Any]) -> None:
    variables = properties["environmentVariables"]
    assert settings(properties).device == ("cuda" if "model" in properties else "cpu")
    with pytest.raises(StartupError, match="LLAVA_MAX_SEQUENCE is not a setting"):
        Settings.from_environment(variables | {"LLAVA_MAX_SEQUENCE": "4"})


def pins(conda_file: str) -> tuple[str, list[str]]:
    """The version of Python, and pip's lines."""
    conda = yaml.safe_load(conda_file)
    python, _, pip = conda["dependencies"]
    return python.removeprefix("python="), sorted(pip["pip"])


@pytest.mark.parametrize("file", ONLINE)
def test_conda_installs_the_versions_that_were_tested(accepted: dict[str, Any], file: str) -> None:
    python, packages = pins(accepted[file]["environment"]["properties"]["condaFile"])
    assert packages == sorted(PROJECT["dependencies"])
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_batch_installs_the_same_but_for_the_server(accepted: dict[str, Any]) -> None:
    python, packages = pins(accepted["batch/deployment.yml"]["environment"]["properties"]["condaFile"])
    assert python == pins((ROOT / "conda.yaml").read_text())[0]
    development = PROJECT["optional-dependencies"]["dev"]
    expected = {line for line in PROJECT["dependencies"] if not line.startswith("azureml-inference-server-http")}
    expected |= {line for line in development if line.startswith("pandas==")}
    assert set(packages) - expected == {line for line in packages if line.startswith("azureml-core==")}
    assert set(packages) >= expected


@pytest.mark.parametrize("file", ["conda.yaml", "batch/conda.yaml"])
def test_conda_s_packages_agree_with_each_other(file: str, tmp_path: Path) -> None:
    """By pip's own resolver, for the image's Python and platform, from wheels alone."""
    python, packages = pins((ROOT / file).read_text())
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--only-binary=:all:", f"--python-version={python}", f"--target={tmp_path}"]
    command += [f"--platform={platform}" for platform in platforms]
    result = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_what_batch_gets_suffices_for_its_script(accepted: dict[str, Any]) -> None:
    """The server and its packages are not there."""
    code = "import sys; sys.modules.update(dict.fromkeys(['flask', 'azureml_inference_server_http'])); import score"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "batch", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_batch_has_as_many_sequences_as_it_may(accepted: dict[str, Any]) -> None:
    properties = accepted["batch/deployment.yml"]["properties"]
    assert settings(properties).batch_parameters == {"max_new_tokens": 256}
    assert settings(properties).device == "cuda"
    assert properties["maxConcurrencyPerInstance"] == 1
    assert properties["errorThreshold"] == -1


def test_no_machine_waits_for_a_batch(accepted: dict[str, Any]) -> None:
    assert accepted["batch/compute.yml"]["properties"]["properties"]["scaleSettings"]["minNodeCount"] == 0
    assert accepted["batch/deployment.yml"]["properties"]["compute"] == accepted["batch/compute.yml"]["name"]


def test_the_code_that_is_uploaded_is_the_service_and_the_demo_model(accepted: dict[str, Any]) -> None:
    upload = set(accepted["upload"])
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "llava_serving").rglob("*.py")}
    own = {"score.py", "swagger3.json", "batch/score.py", *modules}
    assert upload >= own
    assert {tuple(name.split("/")[:2]) for name in upload - own} == {("demo", part) for part in PARTS}


def test_the_upload_leaves_the_rest_of_a_checkout_behind(checkout: Path) -> None:
    wanted = ["swagger3.json", "src/llava_serving/engine/a.py", *(f"demo/{part}/config.json" for part in PARTS)]
    others = [
        ".git/config", ".venv/bin/python", ".venv-azure/lib/a.py", ".ci/run", "README.md", "tests/test_a.py",
        "tests/src/a.py", "benchmarks/score.py", "demo/recipe/train.py", "demo/pictures/a.png",
        "src/llava_serving/__pycache__/a.pyc", "src/llava_serving.egg-info/PKG-INFO", "llava-13b-v0/base/model.bin",
        "batch/samples/requests.jsonl", "score/batch/score.py",
    ]  # fmt: skip
    for name in wanted + others:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    assert validated(checkout)["upload"] == sorted(["score.py", "batch/score.py", *wanted])


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
    variables = accepted["deployment.yml"]["properties"]["environmentVariables"] | {"LLAVA_DEVICE": "cpu"}
    start = "import score, llava_serving; score.init(); print(llava_serving.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[-1]).is_relative_to(tmp_path)


def test_the_job_s_command_merges_and_checks(accepted: dict[str, Any], tmp_path: Path) -> None:
    """As the job runs it, in what is uploaded, on the demo's parts."""
    job = accepted["jobs/merge.yml"]
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
    output = accepted["jobs/merge.yml"]["outputs"]["model"]
    assert output["type"] == "custom_model"
    assert output["name"] == "llava-13b-v0"
