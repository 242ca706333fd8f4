"""What the README states, held against the code."""

import re
from pathlib import Path

from llava_serving.parameters import CHAT_COMPLETION_ALIASES, Parameters
from llava_serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_setting_has_its_row_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(LLAVA_\w+)` \| `?([^|`]*)`? \|", section("Settings"), re.M))
    defaults = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        defaults[PREFIX + name.upper()] = "" if default == () else str(default).lower()
    assert rows == defaults


def test_every_parameter_is_in_the_table() -> None:
    table = section("The contract by example")
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", table, re.M))
    assert set(re.findall(r"`(\w+)`", first_cells)) >= {*Parameters.model_fields, *CHAT_COMPLETION_ALIASES}


def test_every_module_is_in_the_tree() -> None:
    tree = section("How it is laid out")
    modules = {path.name for path in (ROOT / "src" / "llava_serving").rglob("*.py") if path.name != "__init__.py"}
    assert modules == set(re.findall(r"\b(\w+\.py)\b", tree)) - {"score.py"}


def test_every_path_it_names_exists() -> None:
    for path in re.findall(r"\b((?:demo|src|tests)/[\w./-]+)", README):
        assert (ROOT / path).exists(), path
