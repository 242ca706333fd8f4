"""The steps of the deployment workflow in order, with the fake `az` in the place of Azure."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
STEPS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())["jobs"]["deploy"][
    "steps"
]


class Runner:
    """Runs the steps with `run` as GitHub does: one after the other, those with `if` after a failure too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "answer").write_text('[{"0": "the digit 3"}]')
        az = folder / "az"
        # `az extension` and `az configure` change nothing in Azure.
        az.write_text(
            '#!/bin/sh\ncase "$1" in extension|configure) exit 0;; esac\n'
            f'exec "{sys.executable}" "{ROOT}/tests/fake_az.py" "$@"\n'
        )
        az.chmod(0o755)

    def run(self, broken_step: str = "", break_with: str = "") -> dict[str, str]:
        """Returns the outcome of each step by its name. Before `broken_step`, `az` fails on the word `break_with`."""
        outcomes: dict[str, str] = {}
        outputs = ""
        for step in [step for step in STEPS if "run" in step]:
            if step["name"] == broken_step:
                (self.folder / "broken").write_text(break_with)
            failed = "failure" in outcomes.values()
            if not _runs(step.get("if", "success()"), failed, bool(outputs), outcomes):
                outcomes[step["name"]] = "skipped"
                continue
            if "if" in step:
                (self.folder / "broken").unlink(missing_ok=True)
            output = self.folder / "output"
            output.write_text("")
            environment = os.environ | {
                "PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE_AZ": str(self.folder),
                "GITHUB_OUTPUT": str(output), "FILE": "deployment.yml", "CANARY": "10", "PAUSE": "0",
                "TRAFFIC": outputs,
            }  # fmt: skip
            # GitHub's shell for steps that name none.
            command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
            ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            outcomes[step["name"]] = "failure" if ended.returncode else "success"
            outputs = outputs or output.read_text().strip().removeprefix("traffic=")
        return outcomes

    @property
    def traffic(self) -> str:
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE_AZ": str(self.folder)}
        command = [str(ROOT / "scripts/deploy"), "--traffic"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def _runs(condition: str, failed: bool, has_traffic: bool, outcomes: dict[str, str]) -> bool:
    """Evaluates the conditions that the workflow has."""
    return {
        "success()": not failed,
        "failure() && steps.before.outputs.traffic": failed and has_traffic,
        "always() && steps.before.outcome == 'success'": outcomes.get("Remember the traffic") == "success",
    }[condition]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_a_run_deploys_replaces_and_deletes_what_was_replaced(runner: Runner) -> None:
    assert "failure" not in runner.run().values()
    assert runner.traffic == "blue=100"
    assert "failure" not in runner.run().values()
    assert runner.traffic == "green=100", "blue is deleted"


@pytest.mark.parametrize(
    ("step", "word"),
    [("Deploy", "create"), ("Deploy", "invoke"), ("Deploy", "--traffic"), ("Ask the endpoint", "invoke")],
)
def test_after_a_failure_the_traffic_is_as_before_and_the_new_deployment_is_deleted(
    runner: Runner, step: str, word: str
) -> None:
    runner.run()
    outcomes = runner.run(step, word)
    assert outcomes[step] == "failure"
    assert outcomes["Give the traffic back"] == outcomes["Delete what gets no traffic"] == "success"
    assert runner.traffic == "blue=100"


def test_a_first_deployment_that_fails_leaves_no_deployment_that_is_billed(runner: Runner) -> None:
    outcomes = runner.run("Deploy", "invoke")
    assert (outcomes["Deploy"], outcomes["Give the traffic back"]) == ("failure", "skipped")
    assert runner.traffic == ""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_named_by_a_commit(workflow: Path) -> None:
    uses = re.findall(r"uses: (\S+)", workflow.read_text())
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in uses)
