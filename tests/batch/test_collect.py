"""`llava-serving batch collect`: one sorted table of many results, without doubles, and what is missing."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from batch_cases import DEFAULTS, read_csv

from llava_serving.batch.collected_results import CollectedResults
from llava_serving.batch.input_files import find_input_files
from llava_serving.batch.result_files import ResultFiles, write_mini_batch
from llava_serving.batch.row_result import RowResult
from llava_serving.batch.runner import BatchRunner
from llava_serving.tools.cli import main

ERROR = {"code": "x", "message": "y"}


def collect(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["llava-serving", "batch", "collect", *map(str, words)])
    return main()


def answer(file: str, row: int | None, text: str) -> RowResult:
    return RowResult(file, row, [text], None)


def test_rows_of_many_outputs_are_sorted_and_doubles_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["plain", 'a "quote", and\na line', "", "é" * 200_000, "a\r\nb"]
    rows = [answer(f"f{row % 3}/ü.csv", row, texts[row % 5]) for row in range(60)]
    rows.append(RowResult("f1/ü.csv", None, None, ERROR))
    random.Random(1).shuffle(rows)
    write_mini_batch(rows[:20], ["a"], tmp_path / "one")
    write_mini_batch(rows[15:40], ["b"], tmp_path / "one")
    write_mini_batch([RowResult(row.file, row.row, None, ERROR) for row in rows[30:60]], ["a"], tmp_path / "0")
    (tmp_path / "two").mkdir()
    ResultFiles(tmp_path / "two").write(rows[30:])
    output = tmp_path / "all.csv"
    status = collect(monkeypatch, tmp_path / "0", tmp_path / "one", tmp_path / "two", "--output", output)
    assert status == 0
    expected = sorted(rows, key=lambda row: (row.file, row.row is None, row.row))
    assert [tuple(row) for row in read_csv(output)] == [
        tuple("" if cell is None else str(cell) for cell in row.columns()) for row in expected
    ]
    assert "61 rows, 1 of them errors; 45 doubles and 0 cut lines left out" in capsys.readouterr().err


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b'a.jsonl,0,one,\na.jsonl,1,"two, ""x""\nlines",\n'
    for length in range(len(whole) + 1):
        (tmp_path / "predictions.csv").write_bytes(whole[:length])
        assert collect(monkeypatch, tmp_path, "--output", tmp_path / "all.csv") == 0
        rows = [["a.jsonl", "0", "one", ""]] * (length >= 15) + [["a.jsonl", "1", 'two, "x"\nlines', ""]] * (
            length == len(whole)
        )
        assert read_csv(tmp_path / "all.csv") == rows, length


def test_missing_rows_of_the_input_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.jsonl").write_text("[1]\n\n" * 10)
    (source / "b.csv").write_text('input_string,image\n"two\nlines",named.png\nx,\n')
    for name in ("c.bin", "d.csv", "named.png", "own.png", "prompt.txt", "gone.png"):
        (source / name).write_text("x")
    (source / "empty.jsonl").write_text("")
    (source / "linked.jsonl").symlink_to(tmp_path / "nowhere")
    runner = BatchRunner(lambda _: ["an answer"], 1, DEFAULTS)
    results = list(runner.run(find_input_files([source], output)))
    write_mini_batch(results, ["all"], output)
    assert collect(monkeypatch, output, "--input", source, "--output", tmp_path / "all.csv") == 0
    assert "0 rows of the input have no result" in capsys.readouterr().err
    lost = {("a.jsonl", 0), ("a.jsonl", 3), ("a.jsonl", 4), ("a.jsonl", 9), ("b.csv", 1)}
    lost |= {("c.bin", None), ("own.png", 0)}
    write_mini_batch([row for row in results if (row.file, row.row) not in lost], ["all"], output)
    assert collect(monkeypatch, output, "--input", source) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[1:] == [
        "missing: 'a.jsonl' row 0",
        "missing: 'a.jsonl' rows 3 to 4",
        "missing: 'a.jsonl' row 9",
        "missing: 'b.csv' row 1",
        "missing: 'c.bin'",
        "missing: 'own.png' row 0",
        "7 rows of the input have no result",
    ]
    assert printed.out.startswith("a.jsonl,1,an answer,\n")


def test_wrong_outputs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions.csv").write_text("file,row,prediction,error\n")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path / "empty"], "has no predictions.csv"),
        ([tmp_path], "the line at byte 0 is not file, row, prediction, error"),
        ([tmp_path, "--output", tmp_path / "predictions.csv"], "is one of the result files"),
    ):
        assert collect(monkeypatch, *words) == 2
        assert message in capsys.readouterr().err


JOB = """
import re, sys
from pathlib import Path
from llava_serving.batch.collected_results import CollectedResults
with CollectedResults() as collected:
    collected.add([Path(sys.argv[1])])
    with open(sys.argv[2], "wb") as output:
        collected.write(output)
print(*re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()))
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (1_000, 300_000):
        source = tmp_path / f"{num_rows}.csv"
        with source.open("w") as file:
            file.writelines(f"f{row % 7}.csv,{row},{'x' * 300},\n" for row in range(num_rows))
        done = subprocess.run(
            [sys.executable, "-c", JOB, source, tmp_path / "out"], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) * 1024)
        assert (tmp_path / "out").stat().st_size == source.stat().st_size
    assert peaks[1] - peaks[0] < 80 * 2**20, "the cache of the index, and not the 100 MB of the results"
    assert CollectedResults().num_rows == 0
