"""What the README states, held against the code."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from server import Server

from llava_serving.api.parameters import CHAT_COMPLETION_ALIASES, Parameters
from llava_serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_setting_has_its_row_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(LLAVA_\w+)` \| `?([^|`]*)`? \|", section("Settings"), re.M))
    defaults = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        defaults[PREFIX + name.upper()] = "" if default in ((), None) else str(default).lower()
    assert rows == defaults


def test_every_parameter_is_in_the_table() -> None:
    table = section("The contract by example")
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", table, re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) >= {*Parameters.model_fields, *CHAT_COMPLETION_ALIASES}


def test_every_module_is_in_the_tree() -> None:
    tree = section("How it is laid out")
    modules = {path.name for path in (ROOT / "src" / "llava_serving").rglob("*.py") if path.name != "__init__.py"}
    assert modules == set(re.findall(r"\b(\w+\.py)\b", tree)) - {"score.py"}


FOLDERS = "batch|benchmarks|demo|docs|jobs|notebooks|scripts|src|tests|variants"


@pytest.mark.parametrize("page", ["README.md", "docs/deploying.md", "docs/troubleshooting.md"])
def test_every_path_and_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for path in re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w./-]+)", text):
        assert (ROOT / path.rstrip(".")).exists() or (ROOT / page).parent.joinpath(path).exists(), path
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_its_first_commands_answer_as_printed(demo_server: Server) -> None:
    blocks = re.findall(r"```sh\n(curl.*?)```.*?```json\n(.*?)```", section("A first answer"), re.S)
    assert len(blocks) == 2
    answers = []
    for command, _ in blocks:
        command = command.replace("127.0.0.1:5001", f"127.0.0.1:{demo_server.port}")
        run = subprocess.run(["sh"], input=command, cwd=ROOT, capture_output=True, text=True, check=True)
        answers.append(json.loads(run.stdout))
    about_the_picture, about_life = (json.loads(printed) for _, printed in blocks)
    assert answers[0] == about_the_picture
    assert answers[1][0].keys() == about_life[0].keys()  # sampled: another text every time
    assert answers[1][0]["0"].startswith("the meaning of life is")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_its_stream_is_the_one_that_comes(demo_server: Server) -> None:
    command, printed = re.findall(r"```sh\n(curl -sN.*?)```\n\n```\n(.*?)```", README, re.S)[0]
    command = command.replace("127.0.0.1:5001", f"127.0.0.1:{demo_server.port}")
    streamed = subprocess.run(["sh"], input=command, capture_output=True, text=True, check=True).stdout
    texts = ["".join(re.findall(r'"0": "([^"]*)"', events)) for events in (streamed, printed)]
    assert texts[0] == texts[1]
    counts = [re.findall(r'"(\w+_tokens)": (\d+)', events)[:2] for events in (streamed, printed)]
    assert counts[0] == counts[1]
