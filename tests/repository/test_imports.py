"""Imports of the package run one way, from room to room: the order that docs/architecture.md draws."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "llava_serving"
# The rooms that each room may import, itself apart.
SHARED = {"errors", "settings", "file_lock", "model_files", "progress"}
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "file_lock": set(),
    "progress": set(),
    "model_files": {"errors"},
    "client": set(),
    "bench": {"client"},
    "inputs": {"errors", "model_files"},
    "engine": {"errors"},
    "model": {"errors", "engine"},
    "api": {"errors", "inputs", "engine"},
    "weights": {"errors", "model_files", "file_lock", "inputs", "model"},
    "export": {"errors", "model_files", "file_lock", "inputs", "weights"},
    "service": {*SHARED, "api", "inputs", "engine", "model", "weights", "export"},
    "batch": {*SHARED, "client", "api", "weights", "service"},
    "tools": {*SHARED, "client", "bench", "weights", "export", "batch"},
    "__main__": {"tools"},
}


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(module: Path) -> set[str]:
    """The rooms of the package that a module imports, inside functions and for type checkers too."""
    rooms = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.parents[node.level - 1].relative_to(PACKAGE).parts
            path = [*base, *(node.module or "").split(".")] if node.module else list(base)
            rooms |= {path[0]} if path else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("llava_serving"), "imports inside the package are relative"
    return rooms


@pytest.mark.parametrize(
    "name", sorted(path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != ".")
)
def test_a_room_imports_only_the_rooms_below_it(name: str) -> None:
    if name in ("__init__", "__pycache__"):
        return
    modules = sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]
    wrong = {
        f"{module.relative_to(PACKAGE)} -> {other}"
        for module in modules
        for other in imported_rooms(module) - {name} - ALLOWED[name]
    }
    assert not wrong


@pytest.mark.parametrize(
    "module", ["client", "tools.bench", "tools.score", "bench.workload", "engine.engine", "tools.cli"]
)
def test_it_imports_no_torch(module: str) -> None:
    code = f"import sys, llava_serving.{module}; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
