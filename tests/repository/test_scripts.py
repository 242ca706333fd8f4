"""The scripts as processes, with a fake `az` that remembers what exists."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("deploy", "deploy-batch", "autoscale", "monitor")
CORRECT_ANSWER = '[{"0": "the digit 3"}]'


class Azure:
    """An environment whose `az` is tests/fake_az.py, and the fake's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "answer").write_text(CORRECT_ANSWER)
        az = folder / "az"
        az.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/fake_az.py" "$@"\n')
        az.chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE_AZ": str(self.folder)}
        (self.folder / "calls").write_text("")
        script = str(ROOT / "scripts" / words[0])
        return subprocess.run(
            [script, *words[1:]], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )

    def succeed(self, *words: str) -> str:
        process = self.run(*words)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def fail(self, *words: str) -> str:
        process = self.run(*words)
        assert process.returncode == 1, process.stderr
        return process.stderr

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def edit(self, key: str, **changes: Any) -> None:
        state = self.state
        state[key] |= changes
        (self.folder / "state.json").write_text(json.dumps(state))

    @property
    def traffic(self) -> dict[str, int]:
        traffic: dict[str, int] = self.state["online-endpoint//llava-13b"]["traffic"]
        return traffic

    def deployments(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.state if key.startswith("online-deployment/llava-13b/")}


@pytest.fixture
def azure(tmp_path: Path) -> Azure:
    return Azure(tmp_path)


def index(calls: list[list[str]], *words: str) -> int:
    """Returns the index of the first call that has all these words."""
    return next(i for i, call in enumerate(calls) if all(word in call for word in words))


def test_deploy_creates_blue_replaces_it_with_green_and_deletes_both(azure: Azure) -> None:
    output = azure.succeed("deploy")
    assert output.strip().endswith("https://llava-13b/score")
    assert azure.traffic == {"blue": 100}
    azure.succeed("deploy", "--pause", "0", "--canary", "20", "--delete-old")
    shares = [call[call.index("--traffic") + 1] for call in azure.calls if "--traffic" in call]
    assert shares == ["blue=80 green=20", "green=100 blue=0"]
    assert azure.deployments() == {"green"}
    deleted = azure.run("deploy", "--delete")
    assert "deleted llava-13b" in deleted.stderr
    assert not azure.state
    deleted_again = azure.run("deploy", "--delete")
    assert "there is no llava-13b to delete" in deleted_again.stderr


def test_a_deployment_gets_traffic_only_after_it_has_answered(azure: Azure) -> None:
    azure.succeed("deploy")
    first = azure.calls
    assert index(first, "online-deployment", "create") < index(first, "invoke") < index(first, "--traffic")
    azure.succeed("deploy", "--pause", "0")
    second = azure.calls
    requests = [i for i, call in enumerate(second) if "invoke" in call]
    shifts = [i for i, call in enumerate(second) if "--traffic" in call]
    assert requests[0] < shifts[0] < requests[1] < requests[2] < shifts[1]
    assert ["--deployment-name" in second[i] for i in requests] == [True, True, False]


def test_traffic_is_printed_as_az_takes_it_and_set_again(azure: Azure) -> None:
    assert azure.succeed("deploy", "--traffic") == ""
    azure.succeed("deploy")
    assert azure.succeed("deploy", "--traffic") == "blue=100\n"
    azure.succeed("deploy", "--pause", "0")
    assert azure.succeed("deploy", "--traffic") == "blue=0 green=100\n"
    azure.succeed("deploy", "--set-traffic", "blue=100 green=0")
    assert azure.traffic == {"blue": 100, "green": 0}


def test_delete_idle_deletes_the_deployments_without_traffic_only(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--delete-idle")
    assert azure.deployments() == {"blue"}
    azure.succeed("deploy", "--pause", "0")
    azure.succeed("deploy", "--delete-idle")
    assert azure.deployments() == {"green"}
    (azure.folder / "broken").write_text("delete")
    azure.succeed("deploy", "--pause", "0")
    azure.fail("deploy", "--delete-idle")


def test_smoke_fails_unless_the_answer_is_right(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--smoke")
    (azure.folder / "answer").write_text("[]")
    assert "llava-13b does not answer correctly" in azure.fail("deploy", "--smoke")


@pytest.mark.parametrize("wrong", ["", "[]", '{"error": {"code": "x"}}', '[{"0": ""}]', "<html>"])
def test_a_wrong_answer_leaves_the_traffic_unchanged(azure: Azure, wrong: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "answer").write_text(wrong)
    output = azure.fail("deploy", "--pause", "0")
    assert "green does not answer" in output
    assert "the inference-server log of green" in output
    assert "delete --name green --endpoint-name llava-13b" in output
    assert azure.traffic == {"blue": 100}


def test_a_deployment_that_does_not_start_prints_its_logs(azure: Azure) -> None:
    azure.succeed("deploy")
    (azure.folder / "broken").write_text("create")
    output = azure.fail("deploy")
    assert "the inference-server log of green" in output
    assert "the storage-initializer log of green" in output, "the container that downloads the model"
    assert azure.traffic == {"blue": 100}
    (azure.folder / "broken").unlink()
    azure.succeed("deploy", "--pause", "0")  # continues
    assert azure.traffic == {"blue": 0, "green": 100}


def test_a_wrong_answer_during_the_canary_gives_the_traffic_back(azure: Azure) -> None:
    azure.succeed("deploy")
    fake = (azure.folder / "az").read_text()
    # The answer is wrong unless the request names a deployment, as the first request does.
    wrong_unless_named = 'case "$*" in *--deployment-name*) ;; *invoke*) echo no; exit 0;; esac\n'
    (azure.folder / "az").write_text(fake.replace("exec", wrong_unless_named + "exec"))
    output = azure.fail("deploy", "--pause", "0")
    assert "blue has all of the traffic again" in output
    assert azure.traffic == {"blue": 100, "green": 0}


@pytest.mark.parametrize(
    ("line", "broken"),
    [("deploy", "list"), ("deploy", "show"), ("deploy --delete", "list"), ("deploy --logs", "list"),
     ("deploy-batch", "list"), ("deploy-batch --delete", "list"), ("autoscale blue", "list"),
     ("autoscale blue", "show"), ("monitor me@example.com", "show"), ("monitor --delete", "list")],
)  # fmt: skip
def test_an_az_error_does_not_count_as_does_not_exist(azure: Azure, line: str, broken: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "broken").write_text(broken)
    output = azure.fail(*line.split())
    assert "ERROR" in output
    assert not any({"create", "update", "delete"} & set(call) for call in azure.calls)


def test_the_third_deployment_reuses_the_name_of_the_first(azure: Azure) -> None:
    for live in ("blue", "green", "blue"):
        azure.succeed("deploy", "--pause", "0")
        assert azure.traffic[live] == 100
    assert index(azure.calls, "online-deployment", "delete", "blue") < index(azure.calls, "create", "blue")


@pytest.mark.parametrize("left", [{}, {"blue": 0}])
def test_an_interrupted_first_run_starts_again(azure: Azure, left: dict[str, int]) -> None:
    (azure.folder / "answer").write_text("no")
    azure.fail("deploy")
    azure.edit("online-endpoint//llava-13b", traffic=left)
    (azure.folder / "answer").write_text(CORRECT_ANSWER)
    azure.succeed("deploy")
    assert azure.traffic == {"blue": 100}


def test_a_leftover_deployment_loses_its_traffic_before_it_is_deleted(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--pause", "0")
    azure.edit("online-endpoint//llava-13b", traffic={"blue": 49, "green": 51})
    azure.succeed("deploy", "--pause", "0")
    shares = [call[call.index("--traffic") + 1] for call in azure.calls if "--traffic" in call]
    assert shares == ["green=100 blue=0", "green=90 blue=10", "blue=100 green=0"]
    assert index(azure.calls, "green=100 blue=0") < index(azure.calls, "online-deployment", "delete")


def test_a_replacement_has_the_instance_count_of_the_live_deployment(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.edit("online-deployment/llava-13b/blue", instance_count=3)
    azure.succeed("deploy", "--pause", "0", "--closed-egress")
    created = next(call for call in azure.calls if {"online-deployment", "create"} <= set(call))
    assert created[-3:] == ["--set", "egress_public_network_access=disabled", "instance_count=3"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_from_any_folder(name: str) -> None:
    for folder, path in ((ROOT / "scripts", f"./{name}"), (ROOT.parent, f"{ROOT.name}/scripts/{name}")):
        process = subprocess.run([path, "--help"], cwd=folder, capture_output=True, text=True)
        assert f"scripts/{name}" in process.stdout, process.stderr


def test_the_default_file_is_the_repository_s_from_any_folder(azure: Azure) -> None:
    (azure.folder / "deployment.yml").write_text("endpoint_name: another-endpoint\n")
    output = azure.succeed("deploy", "--delete", "--dry-run")
    assert "llava-13b" in output
    azure.succeed("deploy")
    assert azure.traffic == {"blue": 100}


def test_logs_prints_the_other_logs_if_one_is_missing(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--pause", "0")
    (azure.folder / "broken").write_text("storage-initializer")
    output = azure.succeed("deploy", "--logs")
    assert output == "the inference-server log of blue\nthe inference-server log of green\n"


def test_an_answer_in_quotation_marks_is_accepted(azure: Azure) -> None:
    (azure.folder / "answer").write_text(json.dumps(CORRECT_ANSWER))
    azure.succeed("deploy")


def test_file_and_endpoint_options_replace_the_defaults(azure: Azure) -> None:
    azure.succeed("deploy", "--file", "variants/kubernetes_deployment.yml", "--endpoint", "mine")
    endpoint = next(call for call in azure.calls if "create" in call)
    assert endpoint[endpoint.index("--file") + 1] == "variants/kubernetes_endpoint.yml"
    deployment = [call for call in azure.calls if "create" in call][1]
    assert deployment[deployment.index("--file") + 1] == "variants/kubernetes_deployment.yml"
    assert "--set" not in deployment
    assert {key.split("/", 1)[0] for key in azure.state if "mine" in key} == {"online-endpoint", "online-deployment"}


def test_logs_prints_the_logs_of_existing_deployments(azure: Azure) -> None:
    azure.succeed("deploy")
    output = azure.succeed("deploy", "--logs")
    assert output == "the inference-server log of blue\nthe storage-initializer log of blue\n"


def test_deploy_batch_creates_everything_and_deletes_it(azure: Azure) -> None:
    for _ in range(2):  # a second run changes nothing
        azure.succeed("deploy-batch", "--output", str(azure.folder / "out"))
    created = [call[1:3] for call in azure.calls if "create" in call]
    assert created == [["batch-deployment", "create"]]
    assert (azure.folder / "out" / "job-1" / "named-outputs" / "score" / "predictions" / "0a.csv").exists()
    azure.succeed("deploy-batch", "--delete")
    assert set(azure.state) >= {"compute//llava-gpu"}
    azure.succeed("deploy-batch", "--delete", "--compute")
    assert not any(key.startswith(("compute", "batch-endpoint")) for key in azure.state)
    azure.succeed("deploy-batch", "--delete", "--compute")


def test_deploy_batch_sets_the_number_of_machines_of_compute_and_deployment(azure: Azure) -> None:
    for number in ("4", "2"):  # the second run finds a compute
        azure.succeed("deploy-batch", "--output", str(azure.folder / "out"), "--instances", number)
        assert azure.state["compute//llava-gpu"]["max_instances"] == number
        assert azure.state["batch-deployment/llava-13b-batch/default"]["resources.instance_count"] == number
    azure.succeed("deploy-batch", "--output", str(azure.folder / "out"))
    assert azure.state["compute//llava-gpu"]["max_instances"] == "2", "without the option the compute stays as it is"


def test_a_second_autoscale_run_replaces_the_rules(azure: Azure) -> None:
    azure.succeed("deploy")
    for _ in range(2):
        azure.succeed("autoscale", "blue", "--max", "3")
    rules = azure.state["autoscale//autoscale-llava-13b-blue"]["rules"]
    assert len(rules) == 4
    of_endpoint = [rule for rule in rules if rule.startswith("Request")]
    assert len(of_endpoint) == 3
    assert all(rule.endswith("deployment == blue") for rule in of_endpoint), "every rule counts one deployment"
    azure.succeed("deploy", "--delete")
    azure.succeed("autoscale", "blue", "--delete")  # also after its deployment is deleted
    assert "autoscale//autoscale-llava-13b-blue" not in azure.state


def test_a_second_monitor_run_replaces_workbook_alerts_and_budget_and_delete_removes_them(azure: Azure) -> None:
    azure.succeed("deploy")
    deployed = azure.state
    for amount in ("500", "600"):
        azure.succeed("monitor", "me@example.com", "--budget", amount)
    created = {key.split("/")[0] for key in azure.state.keys() - deployed.keys()}
    assert created == {"resource", "action-group", "alert", "budget"}
    alerts = [call for call in azure.calls if call[2:4] == ["alert", "create"]]
    assert len(alerts) == 2
    for alert in alerts:
        assert alert[alert.index("--scopes") + 1].endswith("online-endpoint//llava-13b")
        assert f"action-group//{alert[alert.index('--action') + 1]}" in azure.state
    azure.succeed("monitor", "--delete")
    assert azure.state == deployed


def test_the_budget_begins_this_month_and_writes_to_the_address(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("monitor", "me@example.com", "--budget", "500")
    (call,) = [call for call in azure.calls if "create-with-rg" in call]
    notifications = json.loads(call[call.index("--notifications") + 1])
    assert {notification["threshold"] for notification in notifications.values()} == {80, 100}
    assert all(notification["contact-emails"] == ["me@example.com"] for notification in notifications.values())
    assert re.fullmatch(r"\{start-date:\d{4}-\d\d-01,end-date:\d{4}-01-01\}", call[call.index("--time-period") + 1])
    azure.succeed("monitor", "me@example.com")
    assert not any("budget" in call for call in azure.calls), "without the option the budget stays as it is"


def test_deploy_batch_does_not_show_the_answers_of_an_earlier_job(azure: Azure) -> None:
    out = azure.folder / "out"
    azure.succeed("deploy-batch", "--output", str(out))
    fake = (azure.folder / "az").read_text()
    (azure.folder / "az").write_text(
        fake.replace("exec", 'case "$*" in *download*) exit 0;; *invoke*) echo job-2; exit 0;; esac\nexec')
    )
    output = azure.fail("deploy-batch", "--output", str(out))
    assert "no predictions" in output


@pytest.mark.parametrize("name", ["deploy-batch", "autoscale blue", "monitor me@example.com"])
def test_an_empty_output_of_az_ends_the_script(azure: Azure, name: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "az").write_text('#!/bin/sh\necho "$@" >> "$FAKE_AZ/calls.txt"\n')
    azure.fail(*name.split())
    assert "job stream" not in (azure.folder / "calls.txt").read_text()
    assert "monitor" not in (azure.folder / "calls.txt").read_text()
    assert "deployment group" not in (azure.folder / "calls.txt").read_text()


DRY_RUNS = (
    "deploy", "deploy --live blue --delete-old", "deploy --logs", "deploy --delete", "deploy --closed-egress",
    "deploy --file variants/small_gpu.yml", "deploy --file variants/demo.yml",
    "deploy --file variants/kubernetes_deployment.yml",
    "deploy-batch", "deploy-batch --delete --compute", "autoscale blue", "autoscale green --delete",
    "monitor me@example.com --budget 500", "monitor --delete",
)  # fmt: skip


@pytest.mark.parametrize("line", DRY_RUNS)
def test_a_dry_run_prints_az_calls_and_runs_none(azure: Azure, line: str) -> None:
    printed = [shlex.split(call) for call in azure.succeed(*line.split(), "--dry-run").splitlines()]
    assert azure.calls == []
    assert printed
    for call in printed:
        assert call[0] == "az"
        for option in ("--file", "--request-file", "--input", "--template-file"):
            if option in call:
                assert (ROOT / call[call.index(option) + 1]).exists()


def test_a_dry_run_prints_the_calls_of_a_run(azure: Azure) -> None:
    for line in ("deploy", "deploy-batch"):
        printed = [shlex.split(call)[1:] for call in azure.succeed(line, "--dry-run").splitlines()]
        azure.succeed(line)
        assert [[word.replace("job-1", "JOB") for word in call] for call in azure.calls] == printed


def test_a_dry_run_with_live_prints_the_calls_of_a_replacement(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.edit("online-deployment/llava-13b/blue", instance_count=3)
    printed = azure.succeed("deploy", "--live", "blue", "--delete-old", "--dry-run").replace("COUNT", "3")
    azure.succeed("deploy", "--delete-old", "--pause", "0")
    assert azure.calls == [shlex.split(call)[1:] for call in printed.splitlines()]


def test_a_file_in_the_caller_s_folder_is_read_as_yaml(azure: Azure) -> None:
    text = (ROOT / "deployment.yml").read_text()
    own = azure.folder / "own.yml"
    own.write_text(text.replace("endpoint_name: llava-13b\n", "endpoint_name: \"mine\"  # 'ours'\n"))
    azure.succeed("deploy", "--file", "own.yml")
    assert "online-endpoint//mine" in azure.state
    created = next(call for call in azure.calls if {"online-deployment", "create"} <= set(call))
    assert created[created.index("--file") + 1] == str(own)


@pytest.mark.parametrize("name", ["deploy", "deploy-batch", "autoscale blue", "monitor me@example.com"])
def test_without_az_the_script_says_where_to_get_it(azure: Azure, name: str) -> None:
    (azure.folder / "az").unlink()
    output = azure.fail(*name.split())
    assert "install-azure-cli" in output


@pytest.mark.parametrize("words", [
    "deploy --canary 50", "deploy --nonsense", "deploy --file no.yml", "deploy --file endpoint.yml",
    "deploy --file batch/deployment.yml",
    "deploy --pause x", "deploy --live purple", "deploy --live blue", "deploy --logs --delete", "deploy --endpoint",
    "deploy --endpoint --delete", "deploy --closed-egress --file variants/kubernetes_deployment.yml",
    "deploy-batch --output", "deploy-batch --compute", "deploy-batch --instances 0", "deploy-batch --instances",
    "autoscale", "autoscale a b", "autoscale a --min 3",
    "monitor", "monitor me", "monitor me@example.com you@example.com", "monitor me@example.com --budget",
    "monitor me@example.com --budget 0", "monitor me@example.com --budget 1.5", 'monitor me"@example.com',
])  # fmt: skip
def test_wrong_arguments_fail_before_the_first_az_call(azure: Azure, words: str) -> None:
    azure.fail(*words.split())
    assert azure.calls == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_help_strict_mode_and_paired_step_marks(azure: Azure, name: str) -> None:
    output = azure.succeed(name, "--help")
    assert f"scripts/{name}" in output
    text = (ROOT / "scripts" / name).read_text()
    assert "\nset -euo pipefail\n" in text
    opened, closed = (re.findall(rf"# <{slash}(\w+)>", text) for slash in ("", "/"))
    assert opened == closed


def test_the_smoke_request_has_one_string_and_one_image(azure: Azure) -> None:
    body = json.loads((ROOT / "scripts" / "smoke.json").read_text())
    assert len(body["input_data"]["input_string"]) == len(body["input_data"]["images"]) == 1


def test_deployment_and_endpoint_files_name_the_same_endpoint() -> None:
    deployments = [yaml.safe_load((ROOT / file).read_text()) for file in ("deployment.yml", "batch/deployment.yml")]
    endpoints = [yaml.safe_load((ROOT / file).read_text()) for file in ("endpoint.yml", "batch/endpoint.yml")]
    assert [deployment["endpoint_name"] for deployment in deployments] == [endpoint["name"] for endpoint in endpoints]
