"""docs/architecture.md compared with the package: its tree, diagrams, reading order and table of imports."""

import re
from pathlib import Path

from test_imports import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_tree_lists_every_module_once_with_a_description() -> None:
    lines = re.findall(r"^(src/\S+) +(\S.*)$", section("Every file"), re.M)
    listed = [path for path, _ in lines]
    modules = (ROOT / "src" / "llava_serving").rglob("*.py")
    on_disk = {path.relative_to(ROOT).as_posix() for path in modules if path.name != "__init__.py"}
    assert len(listed) == len(set(listed))
    assert set(listed) == on_disk


def test_every_file_in_a_diagram_exists() -> None:
    diagrams = "".join(re.findall(r"```mermaid\n(.*?)```", PAGE, re.S))
    files = re.findall(r"\w+/\w+\.py", diagrams)
    package = ROOT / "src" / "llava_serving"
    assert len(set(files)) > 15
    assert [file for file in files if not (package / file).is_file()] == []


def test_every_room_is_in_the_tree() -> None:
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("__init__.py")}
    assert rooms == set(re.findall(r"^### `(src/\S+)`$", section("Every file"), re.M))


def test_the_reading_order_names_ten_files() -> None:
    files = re.findall(r"^\d+\. `([\w./]+)`", section("Reading order"), re.M)
    assert len(set(files)) == 10
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_table_of_imports_is_the_tested_one() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section("Which room may import which"), re.M)
    assert {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rows} == ALLOWED
