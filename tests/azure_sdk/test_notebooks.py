"""The notebooks: their outputs in the repository equal those of a new run."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("quickstart", "deploy_online", "deploy_batch")
MAX_BYTES = 60_000


@pytest.mark.parametrize("name", NAMES)
def test_new_run_shows_the_outputs_in_the_repository(name: str, checkout: Path) -> None:
    path = checkout / "notebooks" / f"{name}.ipynb"
    committed, new = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(new, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert displayed(new) == displayed(committed)
    assert any("image/png" in output for output in displayed(new))


def displayed(notebook: Any) -> list[str]:
    """Returns results and images, but not printed text, which has the names of jobs and times and so differs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    return [str(output.get("text/html", output["text/plain"])) for output in data]


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [("deploy_online", "../variants/demo.yml", "../deployment.yml"), ("deploy_batch", "../demo", "../llava-13b-v0")],
)
def test_one_line_at_the_top_chooses_what_is_deployed(name: str, default: str, other: str) -> None:
    first, *rest = [
        cell.source for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells if cell.cell_type == "code"
    ]
    variable, _, value = first.partition(" = ")
    assert value.startswith(f'"{default}"  # ')
    assert other in value
    assert "\n" not in first
    assert any(variable in source for source in rest)
    assert not any(f'"{path}"' in source for source in rest for path in ("../deployment.yml", "../variants/demo.yml"))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_small_and_has_no_local_paths(name: str) -> None:
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < MAX_BYTES
    for local in ("/tmp/", "/home/", "/root/", "/work/", "localhost:"):
        assert local not in text
