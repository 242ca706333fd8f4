"""The command line's scripts as processes, with an `az` that remembers in the place of Azure's."""

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
SCRIPTS = ("deploy", "deploy-batch", "autoscale")
GOOD = '[{"0": "the digit 3"}]'


class Azure:
    """A shell with the fake `az`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "answer").write_text(GOOD)
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
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fail(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1, done.stderr
        return done.stderr

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    def edit(self, key: str, **changes: Any) -> None:
        state = self.state
        state[key] |= changes
        (self.folder / "state.json").write_text(json.dumps(state))

    @property
    def traffic(self) -> dict[str, int]:
        found: dict[str, int] = self.state["online-endpoint//llava-13b"]["traffic"]
        return found

    def deployments(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.state if key.startswith("online-deployment/llava-13b/")}


@pytest.fixture
def azure(tmp_path: Path) -> Azure:
    return Azure(tmp_path)


def index(calls: list[list[str]], *words: str) -> int:
    """Of the first call with these words."""
    return next(i for i, call in enumerate(calls) if all(word in call for word in words))


def test_blue_then_green_then_nothing(azure: Azure) -> None:
    assert azure.succeed("deploy").strip().endswith("https://llava-13b/score")
    assert azure.traffic == {"blue": 100}
    azure.succeed("deploy", "--pause", "0", "--canary", "20", "--delete-old")
    shares = [call[call.index("--traffic") + 1] for call in azure.calls if "--traffic" in call]
    assert shares == ["blue=80 green=20", "green=100 blue=0"]
    assert azure.deployments() == {"green"}
    assert "deleted llava-13b" in azure.run("deploy", "--delete").stderr
    assert not azure.state
    assert "there is no llava-13b to delete" in azure.run("deploy", "--delete").stderr


def test_nothing_gets_traffic_before_it_has_answered(azure: Azure) -> None:
    azure.succeed("deploy")
    first = azure.calls
    assert index(first, "online-deployment", "create") < index(first, "invoke") < index(first, "--traffic")
    azure.succeed("deploy", "--pause", "0")
    second = azure.calls
    asked = [i for i, call in enumerate(second) if "invoke" in call]
    shifted = [i for i, call in enumerate(second) if "--traffic" in call]
    assert asked[0] < shifted[0] < asked[1] < asked[2] < shifted[1]
    assert ["--deployment-name" in second[i] for i in asked] == [True, True, False]


@pytest.mark.parametrize("wrong", ["", "[]", '{"error": {"code": "x"}}', '[{"0": ""}]', "<html>"])
def test_a_wrong_answer_leaves_the_traffic_where_it_was(azure: Azure, wrong: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "answer").write_text(wrong)
    told = azure.fail("deploy", "--pause", "0")
    assert "green does not answer" in told
    assert "the inference-server log of green" in told
    assert "delete --name green --endpoint-name llava-13b" in told
    assert azure.traffic == {"blue": 100}


def test_a_deployment_that_does_not_start_shows_its_log(azure: Azure) -> None:
    azure.succeed("deploy")
    (azure.folder / "broken").write_text("create")
    told = azure.fail("deploy")
    assert "the inference-server log of green" in told
    assert "the storage-initializer log of green" in told, "what downloads the model"
    assert azure.traffic == {"blue": 100}
    (azure.folder / "broken").unlink()
    azure.succeed("deploy", "--pause", "0")  # goes on
    assert azure.traffic == {"blue": 0, "green": 100}


def test_a_canary_that_fails_gives_its_share_back(azure: Azure) -> None:
    azure.succeed("deploy")
    fake = (azure.folder / "az").read_text()
    # Right as long as the request names the deployment, as the first does.
    bad = 'case "$*" in *--deployment-name*) ;; *invoke*) echo no; exit 0;; esac\n'
    (azure.folder / "az").write_text(fake.replace("exec", bad + "exec"))
    assert "blue has all of the traffic again" in azure.fail("deploy", "--pause", "0")
    assert azure.traffic == {"blue": 100, "green": 0}


@pytest.mark.parametrize(
    ("line", "sick"),
    [("deploy", "list"), ("deploy", "show"), ("deploy --delete", "list"), ("deploy --logs", "list"),
     ("deploy-batch", "list"), ("deploy-batch --delete", "list"), ("autoscale blue", "list"),
     ("autoscale blue", "show")],
)  # fmt: skip
def test_what_azure_does_not_tell_is_not_taken_for_a_no(azure: Azure, line: str, sick: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "broken").write_text(sick)
    assert "ERROR" in azure.fail(*line.split())
    assert not any({"create", "update", "delete"} & set(call) for call in azure.calls)


def test_a_third_deployment_takes_the_first_one_s_name(azure: Azure) -> None:
    for live in ("blue", "green", "blue"):
        azure.succeed("deploy", "--pause", "0")
        assert azure.traffic[live] == 100
    assert index(azure.calls, "online-deployment", "delete", "blue") < index(azure.calls, "create", "blue")


@pytest.mark.parametrize("left", [{}, {"blue": 0}])
def test_a_first_run_that_was_interrupted_is_begun_again(azure: Azure, left: dict[str, int]) -> None:
    (azure.folder / "answer").write_text("no")
    azure.fail("deploy")
    azure.edit("online-endpoint//llava-13b", traffic=left)
    (azure.folder / "answer").write_text(GOOD)
    azure.succeed("deploy")
    assert azure.traffic == {"blue": 100}


def test_what_an_interruption_left_loses_its_callers_before_it_goes(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--pause", "0")
    azure.edit("online-endpoint//llava-13b", traffic={"blue": 49, "green": 51})
    azure.succeed("deploy", "--pause", "0")
    shares = [call[call.index("--traffic") + 1] for call in azure.calls if "--traffic" in call]
    assert shares == ["green=100 blue=0", "green=90 blue=10", "blue=100 green=0"]
    assert index(azure.calls, "green=100 blue=0") < index(azure.calls, "online-deployment", "delete")


def test_a_replacement_is_as_many_as_what_it_replaces(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.edit("online-deployment/llava-13b/blue", instance_count=3)
    azure.succeed("deploy", "--pause", "0", "--closed-egress")
    created = next(call for call in azure.calls if {"online-deployment", "create"} <= set(call))
    assert created[-3:] == ["--set", "egress_public_network_access=disabled", "instance_count=3"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_called_from_any_folder(name: str) -> None:
    for folder, path in ((ROOT / "scripts", f"./{name}"), (ROOT.parent, f"{ROOT.name}/scripts/{name}")):
        told = subprocess.run([path, "--help"], cwd=folder, capture_output=True, text=True)
        assert f"scripts/{name}" in told.stdout, told.stderr


def test_from_any_folder_it_deploys_the_repository_s_file(azure: Azure) -> None:
    (azure.folder / "deployment.yml").write_text("endpoint_name: somebody-elses\n")
    assert "llava-13b" in azure.succeed("deploy", "--delete", "--dry-run")
    azure.succeed("deploy")
    assert azure.traffic == {"blue": 100}


def test_a_log_that_cannot_be_had_is_no_reason_to_keep_the_others(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.succeed("deploy", "--pause", "0")
    (azure.folder / "broken").write_text("storage-initializer")
    told = azure.succeed("deploy", "--logs")
    assert told == "the inference-server log of blue\nthe inference-server log of green\n"


def test_az_prints_answers_in_quotation_marks_too(azure: Azure) -> None:
    (azure.folder / "answer").write_text(json.dumps(GOOD))
    azure.succeed("deploy")


def test_the_files_and_the_name_may_be_others(azure: Azure) -> None:
    azure.succeed("deploy", "--file", "variants/kubernetes_deployment.yml", "--endpoint", "mine")
    endpoint = next(call for call in azure.calls if "create" in call)
    assert endpoint[endpoint.index("--file") + 1] == "variants/kubernetes_endpoint.yml"
    deployment = [call for call in azure.calls if "create" in call][1]
    assert deployment[deployment.index("--file") + 1] == "variants/kubernetes_deployment.yml"
    assert "--set" not in deployment
    assert {key.split("/", 1)[0] for key in azure.state if "mine" in key} == {"online-endpoint", "online-deployment"}


def test_logs_of_what_there_is(azure: Azure) -> None:
    azure.succeed("deploy")
    told = azure.succeed("deploy", "--logs")
    assert told == "the inference-server log of blue\nthe storage-initializer log of blue\n"


def test_batch_from_nothing_to_nothing(azure: Azure) -> None:
    for _ in range(2):  # again is no harm
        azure.succeed("deploy-batch", "--output", str(azure.folder / "out"))
    created = [call[1:3] for call in azure.calls if "create" in call]
    assert created == [["batch-deployment", "create"]]
    assert (azure.folder / "out" / "job-1" / "named-outputs" / "score" / "predictions.csv").exists()
    azure.succeed("deploy-batch", "--delete")
    assert set(azure.state) >= {"compute//llava-gpu"}
    azure.succeed("deploy-batch", "--delete", "--compute")
    assert not any(key.startswith(("compute", "batch-endpoint")) for key in azure.state)
    azure.succeed("deploy-batch", "--delete", "--compute")


def test_rules_do_not_pile_up(azure: Azure) -> None:
    azure.succeed("deploy")
    for _ in range(2):
        azure.succeed("autoscale", "blue", "--max", "3")
    rules = azure.state["autoscale//autoscale-llava-13b-blue"]["rules"]
    assert len(rules) == 4
    of_endpoint = [rule for rule in rules if rule.startswith("Request")]
    assert len(of_endpoint) == 3
    assert all(rule.endswith("deployment == blue") for rule in of_endpoint), "another one's callers are no reason"
    azure.succeed("deploy", "--delete")
    azure.succeed("autoscale", "blue", "--delete")  # also when what it scaled has gone
    assert "autoscale//autoscale-llava-13b-blue" not in azure.state


def test_answers_of_another_job_are_not_shown_as_this_one_s(azure: Azure) -> None:
    out = azure.folder / "out"
    azure.succeed("deploy-batch", "--output", str(out))
    fake = (azure.folder / "az").read_text()
    (azure.folder / "az").write_text(
        fake.replace("exec", 'case "$*" in *download*) exit 0;; *invoke*) echo job-2; exit 0;; esac\nexec')
    )
    assert "no predictions.csv" in azure.fail("deploy-batch", "--output", str(out))


@pytest.mark.parametrize("name", ["deploy-batch", "autoscale blue"])
def test_what_comes_back_empty_is_not_gone_on_with(azure: Azure, name: str) -> None:
    azure.succeed("deploy")
    (azure.folder / "az").write_text('#!/bin/sh\necho "$@" >> "$FAKE_AZ/calls.txt"\n')
    azure.fail(*name.split())
    assert "job stream" not in (azure.folder / "calls.txt").read_text()
    assert "autoscale" not in (azure.folder / "calls.txt").read_text()


DRY_RUNS = (
    "deploy", "deploy --live blue --delete-old", "deploy --logs", "deploy --delete", "deploy --closed-egress",
    "deploy --file variants/small_gpu.yml", "deploy --file variants/demo.yml",
    "deploy --file variants/kubernetes_deployment.yml",
    "deploy-batch", "deploy-batch --delete --compute", "autoscale blue", "autoscale green --delete",
)  # fmt: skip


@pytest.mark.parametrize("line", DRY_RUNS)
def test_a_dry_run_prints_what_would_be_called(azure: Azure, line: str) -> None:
    printed = [shlex.split(call) for call in azure.succeed(*line.split(), "--dry-run").splitlines()]
    assert azure.calls == []
    assert printed
    for call in printed:
        assert call[0] == "az"
        for option in ("--file", "--request-file", "--input"):
            if option in call:
                assert (ROOT / call[call.index(option) + 1]).exists()


def test_a_dry_run_prints_what_a_run_calls(azure: Azure) -> None:
    for line in ("deploy", "deploy-batch"):
        printed = [shlex.split(call)[1:] for call in azure.succeed(line, "--dry-run").splitlines()]
        azure.succeed(line)
        assert [[word.replace("job-1", "JOB") for word in call] for call in azure.calls] == printed


def test_a_dry_run_prints_a_replacement_too(azure: Azure) -> None:
    azure.succeed("deploy")
    azure.edit("online-deployment/llava-13b/blue", instance_count=3)
    printed = azure.succeed("deploy", "--live", "blue", "--delete-old", "--dry-run").replace("COUNT", "3")
    azure.succeed("deploy", "--delete-old", "--pause", "0")
    assert azure.calls == [shlex.split(call)[1:] for call in printed.splitlines()]


def test_a_file_is_the_caller_s_and_its_values_are_yaml_s(azure: Azure) -> None:
    text = (ROOT / "deployment.yml").read_text()
    own = azure.folder / "own.yml"
    own.write_text(text.replace("endpoint_name: llava-13b\n", "endpoint_name: \"mine\"  # 'ours'\n"))
    azure.succeed("deploy", "--file", "own.yml")
    assert "online-endpoint//mine" in azure.state
    created = next(call for call in azure.calls if {"online-deployment", "create"} <= set(call))
    assert created[created.index("--file") + 1] == str(own)


@pytest.mark.parametrize("name", ["deploy", "deploy-batch", "autoscale blue"])
def test_without_az_it_says_where_to_get_it(azure: Azure, name: str) -> None:
    (azure.folder / "az").unlink()
    assert "install-azure-cli" in azure.fail(*name.split())


@pytest.mark.parametrize("words", [
    "deploy --canary 50", "deploy --nonsense", "deploy --file no.yml", "deploy --file endpoint.yml",
    "deploy --file batch/deployment.yml",
    "deploy --pause x", "deploy --live purple", "deploy --live blue", "deploy --logs --delete", "deploy --endpoint",
    "deploy --endpoint --delete", "deploy --closed-egress --file variants/kubernetes_deployment.yml",
    "deploy-batch --output", "deploy-batch --compute", "autoscale", "autoscale a b", "autoscale a --min 3",
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_called(azure: Azure, words: str) -> None:
    azure.fail(*words.split())
    assert azure.calls == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_says_how_it_is_used_and_marks_its_steps(azure: Azure, name: str) -> None:
    assert f"scripts/{name}" in azure.succeed(name, "--help")
    text = (ROOT / "scripts" / name).read_text()
    assert "\nset -euo pipefail\n" in text
    opened, closed = (re.findall(rf"# <{slash}(\w+)>", text) for slash in ("", "/"))
    assert opened == closed


def test_the_smoke_request_is_the_contract_s(azure: Azure) -> None:
    body = json.loads((ROOT / "scripts" / "smoke.json").read_text())
    assert len(body["input_data"]["input_string"]) == len(body["input_data"]["images"]) == 1


def test_the_endpoint_has_one_name() -> None:
    deployments = [yaml.safe_load((ROOT / file).read_text()) for file in ("deployment.yml", "batch/deployment.yml")]
    endpoints = [yaml.safe_load((ROOT / file).read_text()) for file in ("endpoint.yml", "batch/endpoint.yml")]
    assert [found["endpoint_name"] for found in deployments] == [found["name"] for found in endpoints]
