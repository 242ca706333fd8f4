"""The YAML files as Azure's own SDK reads them, compared with the code that they describe."""

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

from llava_serving.engine.request_handle import GRACE_SECONDS
from llava_serving.errors import StartupError
from llava_serving.settings import Settings
from llava_serving.tools.serve import server_environment
from llava_serving.weights.model_folder import PARTS

ROOT = Path(__file__).resolve().parents[2]
AZURE_PYTHON = ROOT / ".venv-azure" / "bin" / "python"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEMO = "variants/demo.yml"
ONLINE = ("deployment.yml", "variants/small_gpu.yml", "variants/kubernetes_deployment.yml", DEMO)
OTHERS = (
    "endpoint.yml", "variants/kubernetes_endpoint.yml", "jobs/merge.yml", "jobs/evaluate.yml",
    "batch/endpoint.yml", "batch/deployment.yml", "batch/compute.yml",
)  # fmt: skip
FILES = (*ONLINE, *OTHERS, "conda.yaml", "batch/conda.yaml", "score.py", "batch/score.py", ".amlignore")
AZURE_MAX_SECONDS = 180  # of request_timeout_ms; the SDK accepts more, Azure does not
LOAD_SECONDS = 54_000 / 50  # 54 GB from storage at 50 MB/s
DEMO_SECONDS = 300  # ten times the start on two shared cores


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
    """The files of this project as the SDK serializes them."""
    return validated(ROOT)


@pytest.fixture(scope="module", params=ONLINE)
def properties(accepted: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The properties of each online deployment, as the SDK sends them to Azure Resource Manager."""
    properties: dict[str, Any] = accepted[request.param]["properties"]
    return properties


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that the validation reads, which a test may change."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def seconds(duration: str) -> float:
    """Returns the seconds of an ISO 8601 duration, as the SDK writes it."""
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


def test_the_demo_deployment_has_its_own_endpoint_and_no_gpu(accepted: dict[str, Any]) -> None:
    assert accepted[DEMO]["endpointName"] != accepted["endpoint.yml"]["name"]
    assert "model" not in accepted[DEMO]["properties"]
    assert accepted[DEMO]["properties"]["instanceType"] == "Standard_DS3_v2"


def test_endpoints_have_a_system_assigned_identity(accepted: dict[str, Any]) -> None:
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


def test_the_request_timeout_is_within_azure_s_limit(properties: dict[str, Any]) -> None:
    assert 0 < seconds(properties["requestSettings"]["requestTimeout"]) <= AZURE_MAX_SECONDS


def settings(properties: dict[str, Any]) -> Settings:
    return Settings.from_environment(properties["environmentVariables"])


def test_a_deployment_sets_the_server_variables_of_llava_serving_serve(properties: dict[str, Any]) -> None:
    variables = properties["environmentVariables"]
    own = {name: value for name, value in variables.items() if name.startswith("LLAVA_")}
    local = server_environment(own)
    assert variables.items() >= {name: local[name] for name in local if name != "AML_APP_ROOT"}.items()


def test_every_request_that_azure_admits_has_a_place_and_a_thread(properties: dict[str, Any]) -> None:
    admitted = 2 * properties["requestSettings"]["maxConcurrentRequestsPerInstance"]
    assert admitted == settings(properties).max_live_seqs >= settings(properties).max_sequences
    assert settings(properties).threads >= admitted


def test_gunicorn_gets_the_settings_of_gunicorn_config(properties: dict[str, Any]) -> None:
    assert properties["environmentVariables"]["GUNICORN_CMD_ARGS"] == "--config python:gunicorn_config"


def test_the_service_s_deadline_ends_before_azure_s_timeout(properties: dict[str, Any]) -> None:
    azure = seconds(properties["requestSettings"]["requestTimeout"])
    assert settings(properties).request_timeout_seconds + GRACE_SECONDS < azure


def test_application_insights_gets_no_copy_of_answers(properties: dict[str, Any]) -> None:
    assert properties["appInsightsEnabled"]
    assert properties["environmentVariables"]["APP_INSIGHTS_LOG_RESPONSE_ENABLED"] == "false"


def test_one_worker_process_loads_the_model(properties: dict[str, Any]) -> None:
    assert properties["environmentVariables"]["WORKER_COUNT"] == "1"


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_a_probe_allows_the_time_to_load_the_model(properties: dict[str, Any], probe: str) -> None:
    settings = properties[probe]
    allowed = seconds(settings["initialDelay"]) + settings["failureThreshold"] * seconds(settings["period"])
    assert allowed >= (LOAD_SECONDS if "model" in properties else DEMO_SECONDS)
    assert seconds(settings["timeout"]) <= seconds(settings["period"])


def test_the_worker_timeout_is_at_least_what_liveness_allows(properties: dict[str, Any]) -> None:
    liveness = properties["livenessProbe"]
    allowed = seconds(liveness["initialDelay"]) + liveness["failureThreshold"] * seconds(liveness["period"])
    assert int(properties["environmentVariables"]["WORKER_TIMEOUT"]) >= allowed


def test_the_service_accepts_the_deployment_s_settings(properties: dict[str, Any]) -> None:
    variables = properties["environmentVariables"]
    assert settings(properties).device == ("cuda" if "model" in properties else "cpu")
    with pytest.raises(StartupError, match="LLAVA_MAX_SEQUENCE is not a setting"):
        Settings.from_environment(variables | {"LLAVA_MAX_SEQUENCE": "4"})


def pins(conda_file: str) -> tuple[str, list[str]]:
    """Returns the version of Python and the pip requirements, sorted."""
    conda = yaml.safe_load(conda_file)
    python, _, pip = conda["dependencies"]
    return python.removeprefix("python="), sorted(pip["pip"])


@pytest.mark.parametrize("file", ONLINE)
def test_conda_installs_the_pinned_versions_of_pyproject(accepted: dict[str, Any], file: str) -> None:
    python, packages = pins(accepted[file]["environment"]["properties"]["condaFile"])
    assert packages == sorted(PROJECT["dependencies"])
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_batch_installs_the_same_versions_without_the_server(accepted: dict[str, Any]) -> None:
    python, packages = pins(accepted["batch/deployment.yml"]["environment"]["properties"]["condaFile"])
    assert python == pins((ROOT / "conda.yaml").read_text())[0]
    development = PROJECT["optional-dependencies"]["dev"]
    server = ("azureml-inference-server-http", "gunicorn")
    expected = {line for line in PROJECT["dependencies"] if not line.startswith(server)}
    expected |= {line for line in development if line.startswith("pandas==")}
    assert set(packages) - expected == {line for line in packages if line.startswith("azureml-core==")}
    assert set(packages) >= expected


@pytest.mark.parametrize("file", ["conda.yaml", "batch/conda.yaml"])
def test_pip_resolves_the_conda_packages(file: str, tmp_path: Path) -> None:
    """Resolves for the image's Python and platform, with wheels only."""
    python, packages = pins((ROOT / file).read_text())
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--only-binary=:all:", f"--python-version={python}", f"--target={tmp_path}"]
    command += [f"--platform={platform}" for platform in platforms]
    result = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_the_batch_script_imports_without_the_server_s_packages(accepted: dict[str, Any]) -> None:
    """sys.modules blocks the imports of the server and of flask."""
    code = "import sys; sys.modules.update(dict.fromkeys(['flask', 'azureml_inference_server_http'])); import score"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "batch", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_batch_deployment_has_its_parameters_and_one_process(accepted: dict[str, Any]) -> None:
    properties = accepted["batch/deployment.yml"]["properties"]
    assert settings(properties).batch_parameters == {"max_new_tokens": 256}
    assert settings(properties).device == "cuda"
    assert properties["maxConcurrencyPerInstance"] == 1
    assert properties["errorThreshold"] == -1


def test_the_batch_compute_has_no_machine_at_rest(accepted: dict[str, Any]) -> None:
    assert accepted["batch/compute.yml"]["properties"]["properties"]["scaleSettings"]["minNodeCount"] == 0
    assert accepted["batch/deployment.yml"]["properties"]["compute"] == accepted["batch/compute.yml"]["name"]


def test_the_upload_holds_the_service_and_the_demo_model_only(accepted: dict[str, Any]) -> None:
    upload = set(accepted["upload"])
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "llava_serving").rglob("*.py")}
    own = {"score.py", "gunicorn_config.py", "swagger3.json", "batch/score.py", *modules}
    assert upload >= own
    assert {tuple(name.split("/")[:2]) for name in upload - own} == {("demo", part) for part in PARTS}


def test_the_upload_leaves_out_the_other_files_of_a_checkout(checkout: Path) -> None:
    uploaded = ["swagger3.json", "src/llava_serving/engine/a.py", *(f"demo/{part}/config.json" for part in PARTS)]
    others = [
        ".git/config", ".venv/bin/python", ".venv-azure/lib/a.py", ".ci/run", "README.md", "tests/test_a.py",
        "tests/src/a.py", "benchmarks/score.py", "demo/recipe/train.py", "demo/pictures/a.png",
        "src/llava_serving/__pycache__/a.pyc", "src/llava_serving.egg-info/PKG-INFO", "llava-13b-v0/base/model.bin",
        "batch/samples/requests.jsonl", "score/batch/score.py",
    ]  # fmt: skip
    for name in uploaded + others:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    assert validated(checkout)["upload"] == sorted(["score.py", "batch/score.py", *uploaded])


def test_the_code_hash_changes_with_uploaded_files_only(checkout: Path) -> None:
    """The SDK uploads nothing if its hash is unchanged. For the hash it skips whole folders."""
    deep, test = checkout / "src" / "llava_serving" / "engine" / "a.py", checkout / "tests" / "test_a.py"
    hashes = []
    for file, text in ((deep, "1"), (test, "1"), (deep, "2")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        hashes.append(validated(checkout)["code_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_uploaded_code_starts_without_the_repository(accepted: dict[str, Any], tmp_path: Path) -> None:
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
    """Runs the job's command in a copy of the upload, on the demo's parts."""
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


def test_the_evaluation_job_s_command_measures_a_model_and_logs_the_figures(
    accepted: dict[str, Any], tmp_path: Path
) -> None:
    """Runs the job's command in a copy of the upload, on the demo model. A module stands in for MLflow."""
    job = accepted["jobs/evaluate.yml"]
    for name in accepted["upload"]:
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "code" / name)
    mlflow = "import json\ndef log_metrics(metrics): print('logged', json.dumps(metrics))\n"
    (tmp_path / "code" / "src" / "mlflow.py").write_text(mlflow)
    shutil.copytree(ROOT / "demo" / "pictures", tmp_path / "data")
    question = {"image": "digit.png", "question": "What is in the image?", "answers": ["digit 3"]}
    (tmp_path / "data" / "questions.jsonl").write_text(json.dumps(question))
    values = {
        "inputs.arguments": "vqa --questions questions.jsonl --pictures .", "inputs.data": str(tmp_path / "data"),
        "inputs.model": str(ROOT / "demo"), "outputs.results": str(tmp_path / "results"),
    }  # fmt: skip
    command = job["component"]["command"]
    for name, value in values.items():
        command = command.replace(f"${{{{{name}}}}}", value)
    assert "${{" not in command
    assert "pip install" in command
    python = command.replace("python -m pip install", "false").replace("python ", f"{sys.executable} ")
    environment = os.environ | {"MLFLOW_TRACKING_URI": "azureml://here"}
    result = subprocess.run(
        ["bash", "-c", python], cwd=tmp_path / "code", env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert 'logged {"accuracy.all": 100.0}' in result.stdout
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["right"] == {"all": 1}


def test_the_evaluation_job_keeps_its_answers_as_a_data_asset(accepted: dict[str, Any]) -> None:
    job = accepted["jobs/evaluate.yml"]
    assert job["outputs"]["results"] == {"type": "uri_folder", "name": "llava-evaluation", "mode": "upload"}
    assert job["inputs"]["arguments"].startswith("scienceqa --problems problems.json")


def test_the_job_registers_a_model(accepted: dict[str, Any]) -> None:
    output = accepted["jobs/merge.yml"]["outputs"]["model"]
    assert output["type"] == "custom_model"
    assert output["name"] == "llava-13b-v0"
