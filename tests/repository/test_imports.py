"""Imports inside the package: each room imports exactly the rooms that ALLOWED lists, and no imports are circular.

docs/architecture.md shows ALLOWED as a table; test_architecture.py compares the two.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SOURCE / "llava_serving"
# The rooms and single files that each room imports, besides itself.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "file_lock": set(),
    "cpu_cores": set(),
    "progress": set(),
    "model_files": {"errors"},
    "client": set(),
    "bench": {"client"},
    "playground": {"client"},
    "inputs": {"errors", "model_files"},
    "engine": {"errors"},
    "model": {"errors", "engine"},
    "api": {"errors", "inputs", "engine"},
    "weights": {"errors", "model_files", "file_lock", "inputs", "model"},
    "export": {"errors", "model_files", "file_lock", "inputs", "weights"},
    "intake": {"errors", "cpu_cores", "inputs", "api"},
    "server": {"errors", "settings", "api"},
    "service": {"errors", "settings", "cpu_cores", "inputs", "engine", "model", "api", "intake", "weights", "export"},
    "batch": {"errors", "settings", "file_lock", "progress", "client", "api", "weights", "service"},
    "evaluation": {"errors", "settings", "file_lock", "progress", "client", "inputs", "weights", "service"},
    "profiling": {"engine", "model", "api", "service"},
    "tools": {
        "errors", "settings", "progress", "client", "bench", "playground", "weights", "export", "batch", "evaluation",
        "profiling",
    },
    "__main__": {"tools"},
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"})


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


DOTTED_NAMES = {dotted_name(path) for path in MODULES}


def imported_modules(path: Path) -> set[str]:
    """Returns the package's modules that a file imports, also inside functions and for type checkers."""
    package = ".".join(path.relative_to(SOURCE).parent.parts)
    return {
        target
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
        for target in import_targets(node, package)
    }


def import_targets(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Yields the modules that a relative import in `package` names: submodules, or the module that holds the names."""
    base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
    module = f"{base}.{node.module}" if node.module else base
    for alias in node.names:
        yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in DOTTED_NAMES else module


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    forbidden = {
        f"{path.relative_to(PACKAGE)} -> {module}"
        for path in MODULES
        if room_of(dotted_name(path)) == room
        for module in imported_modules(path)
        if room_of(module) not in {room, *ALLOWED[room]}
    }
    assert not forbidden


@pytest.mark.parametrize("room", ROOMS)
def test_every_allowed_import_is_used(room: str) -> None:
    paths = [path for path in MODULES if room_of(dotted_name(path)) == room]
    imported = {room_of(module) for path in paths for module in imported_modules(path)}
    assert ALLOWED[room] - imported == set()


def test_only_main_imports_the_command_line() -> None:
    assert {room for room, allowed in ALLOWED.items() if "tools" in allowed} == {"__main__"}


def test_no_imports_are_circular() -> None:
    graph = {dotted_name(path): imported_modules(path) - {dotted_name(path)} for path in MODULES}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_imports_inside_the_package_are_relative() -> None:
    absolute = {
        dotted_name(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in absolute_imports(node)
        if name.split(".")[0] == PACKAGE.name
    }
    assert not absolute


def absolute_imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


@pytest.mark.parametrize(
    "module",
    [
        "client",
        "tools.bench",
        "tools.score",
        "bench.workload",
        "engine.engine",
        "intake.input_process",
        "server.worker",
        "tools.cli",
    ],
)
def test_a_module_without_tensors_imports_no_torch(module: str) -> None:
    code = f"import sys, llava_serving.{module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)})
    assert result.returncode == 0
