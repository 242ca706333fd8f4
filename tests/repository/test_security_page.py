"""docs/security.md compared with the tests and settings that it names."""

import ast
import re
from pathlib import Path

import pytest

from llava_serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
ROW = re.compile(r"^\| .*? \| .*? \| (.*?) ?\| (.*?) \|$", re.MULTILINE)


def threats() -> list[tuple[str, str]]:
    """Returns the cells of settings and of tests of each threat."""
    _, *rows = ROW.findall(PAGE.split("## What each limit defends\n")[1].split("\n## ")[0])
    return [row for row in rows if set(row[0]) != {"-", "|"}]


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED_TESTS}))
def test_every_test_that_the_page_names_exists(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for named, name in NAMED_TESTS if named == file} <= functions


def test_every_setting_that_the_page_names_exists() -> None:
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set(re.findall(rf"(?<!TODO-)\b{PREFIX}\w+", PAGE))
    assert named <= settings
    assert len(named) > 10


def test_every_threat_has_a_test() -> None:
    rows = threats()
    assert len(rows) > 25
    assert [tests for _, tests in rows if "::" not in tests and "TODO-" not in tests] == []


def test_the_page_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 120
