"""Every command and every program in the documents runs as it stands, or its first line says what it needs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server import ROOT, Server

PAGES = ["README.md", "CONTRIBUTING.md", "demo/README.md", "benchmarks/README.md"]
PAGES += [page.relative_to(ROOT).as_posix() for page in sorted(ROOT.glob("docs/*.md"))]
# The first line of a block that no test runs: what it needs, how long it takes, or that it does not end.
LABEL = re.compile(r"# (needs|takes|runs until Ctrl-C)\b")
# A status of 400 or above fails the block.
PREAMBLE = 'set -euo pipefail\ncurl() { command curl --fail-with-body "$@"; }\n'


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns the language and the text of each block of commands or Python on a page."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)


def runnable(page: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in blocks(page) if not LABEL.match(text)]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Returns a folder with the repository's files as links, so that the commands write their results elsewhere."""
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".venv"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def run(language: str, text: str, workplace: Path, server: Server) -> str:
    text = text.replace("127.0.0.1:5001", f"127.0.0.1:{server.port}")
    command, text = (["bash"], PREAMBLE + text) if language == "sh" else ([sys.executable, "-"], text)
    ended = subprocess.run(command, input=text, cwd=workplace, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_every_command_in_a_document_runs_or_says_what_it_needs(
    page: str, workplace: Path, demo_server: Server
) -> None:
    for language, text in runnable(page):
        run(language, text, workplace, demo_server)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_first_commands_of_the_readme_print_the_answers_that_it_shows(workplace: Path, demo_server: Server) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"```sh\n(curl -s .*?)```.*?```json\n(.*?)```", readme, re.S)
    assert len(commands) == 2
    answers = [json.loads(run("sh", command, workplace, demo_server)) for command, _ in commands]
    picture_answer, sampled_answer = (json.loads(printed) for _, printed in commands)
    assert answers[0] == picture_answer
    assert answers[1][0].keys() == sampled_answer[0].keys()  # sampled: the text differs from run to run
    assert answers[1][0]["0"].startswith("the meaning of life is")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_stream_command_prints_the_text_and_the_token_counts_that_the_api_page_shows(
    workplace: Path, demo_server: Server
) -> None:
    api = (ROOT / "docs/api.md").read_text("utf-8")
    command, printed = re.findall(r"```sh\n(curl -sN.*?)```\n\n```\n(.*?)```", api, re.S)[0]
    streamed = run("sh", command, workplace, demo_server)
    texts = ["".join(re.findall(r'"0": "([^"]*)"', events)) for events in (streamed, printed)]
    assert texts[0] == texts[1]
    counts = [re.findall(r'"(\w+_tokens)": (\d+)', events)[:2] for events in (streamed, printed)]
    assert counts[0] == counts[1]
