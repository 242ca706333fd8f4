"""The README compared with the code, and the paths and links of every document."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from server import Server

from llava_serving.api.parameters import OPENAI_ALIASES, Parameters
from llava_serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(LLAVA_\w+)` \| `?([^|`]*)`? \|", section("Settings"), re.M))
    defaults = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        defaults[PREFIX + name.upper()] = "" if default in ((), None) else str(default).lower()
    assert rows == defaults


def test_the_table_of_parameters_has_every_parameter() -> None:
    table = section("The contract by example")
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", table, re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) >= {*Parameters.model_fields, *OPENAI_ALIASES}


def test_every_room_of_the_package_has_its_row() -> None:
    rooms = {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "llava_serving").glob("*/__init__.py")
    }
    assert rooms == set(re.findall(r"`(src/llava_serving/\w+)`", section("How it is laid out")))


PAGES = [page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
PAGES.append("benchmarks/README.md")
FOLDERS = "batch|benchmarks|demo|docs|jobs|notebooks|scripts|src|standin|tests|variants"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_a_document_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    paths = re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w./-]+)", text)
    folder = (ROOT / page).parent
    assert [path for path in paths if not any((base / path.rstrip(".")).exists() for base in (ROOT, folder))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_in_a_document_leads_to_a_file_and_a_heading(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_make_command_in_a_document_is_a_target(page: str) -> None:
    targets = set(re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.M))
    commands = re.findall(r"(?:^|`)make ([\w./-]+)", (ROOT / page).read_text("utf-8"), re.M)
    assert set(commands) <= targets


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_first_curl_commands_return_the_printed_answers(demo_server: Server) -> None:
    blocks = re.findall(r"```sh\n(curl.*?)```.*?```json\n(.*?)```", section("A first answer"), re.S)
    assert len(blocks) == 2
    answers = []
    for command, _ in blocks:
        command = command.replace("127.0.0.1:5001", f"127.0.0.1:{demo_server.port}")
        run = subprocess.run(["sh"], input=command, cwd=ROOT, capture_output=True, text=True, check=True)
        answers.append(json.loads(run.stdout))
    picture_answer, sampled_answer = (json.loads(printed) for _, printed in blocks)
    assert answers[0] == picture_answer
    assert answers[1][0].keys() == sampled_answer[0].keys()  # sampled: the text differs from run to run
    assert answers[1][0]["0"].startswith("the meaning of life is")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_stream_command_returns_the_printed_text_and_token_counts(demo_server: Server) -> None:
    command, printed = re.findall(r"```sh\n(curl -sN.*?)```\n\n```\n(.*?)```", README, re.S)[0]
    command = command.replace("127.0.0.1:5001", f"127.0.0.1:{demo_server.port}")
    streamed = subprocess.run(["sh"], input=command, capture_output=True, text=True, check=True).stdout
    texts = ["".join(re.findall(r'"0": "([^"]*)"', events)) for events in (streamed, printed)]
    assert texts[0] == texts[1]
    counts = [re.findall(r'"(\w+_tokens)": (\d+)', events)[:2] for events in (streamed, printed)]
    assert counts[0] == counts[1]
