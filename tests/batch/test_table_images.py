"""Images that a CSV file names belong to its rows, in whatever mini-batch they arrive; hidden folders; messages."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from batch_cases import DEFAULTS, read_csv, run_columns

from llava_serving.batch.input_files import find_input_files
from llava_serving.batch.job_input import job_files, job_tables
from llava_serving.batch.runner import BatchRunner


def write_input(folder: Path) -> None:
    for name in ("a.png", "own.png", "sub/b.png", "sub/deep/c.png", ".hidden/d.png", "sub/.e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"PNG")
    (folder / "one.csv").write_text("input_string,image\n?,a.png\n?,sub/../sub/b.png\n?,\n?,AAAA\nx,y,z\n")
    (folder / "sub" / "two.CSV").write_text('image,input_string\ndeep/c.png,"two\nlines"\n')
    (folder / ".hidden" / "three.csv").write_text("input_string,image\n?,own.png\n")
    (folder / "sub" / "wrong.csv").write_text("question,image\n?,../own.png\n")


OWN_ROWS = [("one.csv", row) for row in range(5)] + [
    ("own.png", 0),
    ("sub/two.CSV", 0),
    ("sub/wrong.csv", None),
]


def runner() -> BatchRunner:
    return BatchRunner(lambda _: ["an answer"], 1, DEFAULTS)


def test_an_image_that_a_table_names_has_no_row_of_its_own(tmp_path: Path) -> None:
    write_input(tmp_path)
    columns = run_columns(runner(), *find_input_files([tmp_path], tmp_path / "out"))
    assert [row[:2] for row in columns] == OWN_ROWS


@pytest.mark.parametrize("mini_batch_size", [1, 2, 3, 100])
def test_an_image_that_a_table_names_has_no_row_of_its_own_in_another_mini_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini_batch_size: int
) -> None:
    write_input(tmp_path)
    monkeypatch.setenv("AZURE_ML_INPUT_job_input", str(tmp_path))
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for same_process in (True, False):
        one, rows = runner(), []
        for start in range(0, len(paths), mini_batch_size):
            mini_batch = paths[start : start + mini_batch_size]
            results = (one if same_process else runner()).run(job_files(mini_batch), job_tables(mini_batch))
            rows += [result.columns()[:2] for result in results]
        assert sorted(rows, key=str) == sorted(OWN_ROWS, key=str)


def test_a_table_that_is_no_input_of_the_run_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_input(tmp_path)
    columns = run_columns(runner(), *find_input_files([tmp_path / "sub" / "deep"], tmp_path / "out"))
    assert [row[:2] for row in columns] == [("c.png", 0)]
    for job_input in (tmp_path / "sub" / "deep", tmp_path / "sub" / "deep" / "c.png"):
        monkeypatch.setenv("AZURE_ML_INPUT_job_input", str(job_input))
        paths = [tmp_path / "sub" / "deep" / "c.png"]
        assert len(list(runner().run(job_files(paths), job_tables(paths)))) == 1


def load_entry_script() -> Any:
    spec = importlib.util.spec_from_file_location("entry", Path(__file__).parents[2] / "batch" / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_mini_batch_returns_an_item_for_each_file_and_writes_only_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_input(source)
    (source / "prompt.txt").write_text("?")
    (source / "empty.jsonl").write_text("\n\n")
    (source / "unknown.bin").write_text("")
    (source / ".DS_Store").write_text("")
    monkeypatch.setenv("AZURE_ML_INPUT_job_input", str(source))
    entry = load_entry_script()
    entry.runner, entry.output = runner(), output
    mini_batch = sorted(str(path) for path in source.rglob("*") if path.is_file())
    for _ in range(2):  # a retry replaces the results
        returned = entry.run(mini_batch)
        assert len(returned) == len(mini_batch)
        (results,) = (output / "predictions").iterdir()
        assert len(read_csv(results)) == len(OWN_ROWS) + 1
    names = {row[0] for row in read_csv(results)}
    assert names == {"one.csv", "own.png", "sub/two.CSV", "sub/wrong.csv", "unknown.bin"}
    rowless = [str(source / "prompt.txt"), str(source / "empty.jsonl")]
    assert len(entry.run(rowless)) == 2
    assert list((output / "predictions").iterdir()) == [results], "no file without rows"


def test_hidden_folders_are_not_read_unless_the_input_itself_is_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".cache" / "in"
    for name in ("a.jsonl", ".git/b.jsonl", "c/.d/e/f.jsonl", ".g.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[1]\n")
    monkeypatch.setenv("AZURE_ML_INPUT_x", str(folder))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert [name for _, name in job_files(paths)] == ["a.jsonl"]
    assert [name for _, name in find_input_files([folder], tmp_path / "out")] == ["a.jsonl"]
    explicit = find_input_files([folder / ".git", folder / ".g.jsonl"], tmp_path / "out")
    assert [name for _, name in explicit] == [".git/b.jsonl", ".g.jsonl"]


def test_every_message_about_an_image_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "p q").mkdir(parents=True)
    (tmp_path / "in" / "big.png").write_bytes(b"x" * 2_000_000)
    (tmp_path / "in" / "p q" / "big.png").write_bytes(b"x" * 2_000_000)
    (tmp_path / "in" / "p q" / "t.csv").write_text("input_string,image\n?,gone.png\n?,x/gone.png\n?,../big.png\n")
    (tmp_path / "in" / "r").mkdir()
    (tmp_path / "in" / "r" / "a.png").write_bytes(b"x")
    (tmp_path / "in" / "r" / "prompt.txt").write_bytes(b"\xff")
    columns = run_columns(runner(), *find_input_files([tmp_path / "in"], tmp_path / "out"))
    messages = [row[3].partition(": ")[2] for row in columns]
    assert messages == [
        "big.png has more than 1,000,000 bytes",
        "p q/big.png has more than 1,000,000 bytes",
        "p q/gone.png cannot be read: No such file or directory",
        "p q/x/gone.png cannot be read: No such file or directory",
        "p q/../big.png is not in the folder of the CSV p q/t.csv",
        "r/prompt.txt is not UTF-8",
    ]
