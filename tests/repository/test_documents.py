"""The tables of the documents compared with the code, and every path, link and make target in them."""

import re
from pathlib import Path

import pytest

from llava_serving.api.parameters import OPENAI_ALIASES, Parameters
from llava_serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README_LINES = 170


def page_text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def test_the_readme_is_short() -> None:
    assert len(page_text("README.md").splitlines()) <= README_LINES


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(LLAVA_\w+)` \| `?([^|`]*)`? \|", page_text("docs/settings.md"), re.M))
    defaults = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        defaults[PREFIX + name.upper()] = "" if default in ((), None) else str(default).lower()
    assert rows == defaults


def test_the_table_of_parameters_has_every_parameter() -> None:
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", page_text("docs/api.md"), re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) >= {*Parameters.model_fields, *OPENAI_ALIASES}


def test_every_room_of_the_package_has_its_row() -> None:
    rooms = {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "llava_serving").glob("*/__init__.py")
    }
    table = page_text("docs/architecture.md").split("## Folders\n")[1].split("\n## ")[0]
    assert rooms == set(re.findall(r"`(src/llava_serving/\w+)`", table))


PAGES = [page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
PAGES += ["benchmarks/README.md", "demo/README.md"]
FOLDERS = "batch|benchmarks|demo|docs|jobs|notebooks|scripts|src|standin|tests|variants"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_a_document_exists(page: str) -> None:
    text = page_text(page)
    paths = re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w./-]+)", text)
    folder = (ROOT / page).parent
    assert [path for path in paths if not any((base / path.rstrip(".")).exists() for base in (ROOT, folder))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_in_a_document_leads_to_a_file_and_a_heading(page: str) -> None:
    text = page_text(page)
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
