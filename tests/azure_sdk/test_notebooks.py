"""The notebooks from top to bottom, as a new user runs them, and what they show in the repository."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("quickstart", "deploy_online", "deploy_batch")
MOST_BYTES = 60_000


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_what_the_repository_shows(name: str, checkout: Path) -> None:
    path = checkout / "notebooks" / f"{name}.ipynb"
    kept, run = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert shown(run) == shown(kept)
    assert any("image/png" in picture for picture in shown(run))


def shown(notebook: Any) -> list[str]:
    """Results and pictures; what is printed tells of jobs and times, and differs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    return [str(found.get("text/html", found["text/plain"])) for found in data]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_tells_nothing_of_the_machine_it_ran_on(name: str) -> None:
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < MOST_BYTES
    for place in ("/tmp/", "/home/", "/root/", "/work/", "localhost:"):
        assert place not in text
