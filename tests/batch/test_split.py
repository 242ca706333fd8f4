"""`llava-serving batch split`: the parts have the rows of the big file, unchanged and in order."""

import csv
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from batch_cases import DEFAULTS
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.batch.input_files import find_input_files
from llava_serving.batch.input_parts import split_file
from llava_serving.batch.row_reader import read_input_rows
from llava_serving.errors import RequestError, StartupError
from llava_serving.tools.cli import main

LINE = st.text(st.sampled_from('ab ,"é\r\\'), max_size=8)


def requests(*paths: Path) -> list[Any]:
    return [
        row.request.code if isinstance(row.request, RequestError) else row.request
        for path in paths
        for row in read_input_rows(path, path.name, DEFAULTS)
    ]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-0*"))


@given(cells=st.lists(st.tuples(LINE, st.text(max_size=5)), max_size=20), rows=st.integers(1, 7), bom=st.booleans())
def test_the_parts_of_a_csv_have_its_rows_and_its_header(cells: list[tuple[str, str]], rows: int, bom: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "t.csv", Path(folder) / "out"
        with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="", errors="surrogatepass") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "input_string"])
            writer.writerows(("7", "\n".join(pair)) for pair in cells if "\0" not in pair[1])
        num_parts = split_file(path, output, rows, DEFAULTS.max_bytes)
        assert requests(*parts(output)) == requests(path)
        assert len(parts(output)) == num_parts == -(-len(requests(path)) // rows)
        assert all(part.read_bytes().startswith(b"id,input_string\r\n") for part in parts(output))


@given(lines=st.lists(LINE, max_size=20), rows=st.integers(1, 7))
def test_the_parts_of_json_lines_have_its_rows(lines: list[str], rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "t.jsonl", Path(folder) / "out"
        path.write_bytes("\n".join(lines).encode())
        split_file(path, output, rows, DEFAULTS.max_bytes)
        assert requests(*parts(output)) == requests(path)
        assert all(len(requests(part)) == rows for part in parts(output)[:-1])


def test_malformed_rows_stay_the_same_errors_and_quoting_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [
        b'"a ""quoted"" one",1',
        b'open "quote,2',
        b'"never closed,3',
        b"caf\xe9,4",
        b"x,y,z",
        b"",
        b'"two\nlines",6',
    ]
    path.write_bytes(b"input_string,id\n" + b"\n".join(lines))
    for rows in (1, 2, 100):
        output = tmp_path / str(rows)
        split_file(path, output, rows, DEFAULTS.max_bytes)
        assert requests(*parts(output)) == requests(path)
    assert b'"a ""quoted"" one",1\nopen "quote,2\n' in parts(tmp_path / "100")[0].read_bytes()
    assert b"caf\xe9,4\n" in parts(tmp_path / "100")[0].read_bytes()


def test_parts_find_their_images_under_the_same_relative_path(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "p" / "q").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    for name in ("a.png", "p/q/b.png"):
        (source / name).write_bytes(name.encode())
    (source / "t.csv").write_text("input_string,image\n?,a.png\n?,./p/q/b.png\n?,../secret.png\n?,gone.png\n?,a.png\n")
    split_file(source / "t.csv", output, 2, DEFAULTS.max_bytes)
    files = find_input_files([output], tmp_path / "results")
    assert [name for _, name in files] == ["a.png", "p/q/b.png", "t-000000.csv", "t-000001.csv", "t-000002.csv"]
    assert requests(*parts(output)) == requests(source / "t.csv")


def test_a_row_above_the_limit_is_never_held_in_memory_and_is_an_error_in_its_part(tmp_path: Path) -> None:
    for name, start, end in (
        ("t.csv", b"input_string\nfirst\n", b"\nlast\n"),
        ("t.jsonl", b'"first"\n', b'\n"last"\n'),
    ):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            for _ in range(30):
                file.write(b"x" * 1_000_000)
            file.write(end)
        tracemalloc.start()
        split_file(tmp_path / name, tmp_path / f"{name}.out", 1, DEFAULTS.max_bytes)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 20_000_000
        first, error, last = requests(*parts(tmp_path / f"{name}.out"))
        assert (b"first" in first, error, b"last" in last) == (True, requests(tmp_path / name)[1], True)


def test_a_file_that_cannot_be_split_and_a_part_that_exists_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("a.png", ""), ("b.csv", "input_string;image\n"), ("c.jsonl", "[1]\n[2]\n")):
        (tmp_path / name).write_text(content)
    with pytest.raises(StartupError, match="no file of rows"):
        split_file(tmp_path / "a.png", tmp_path / "out", 1, 1000)
    with pytest.raises(StartupError, match="separates its columns by semicolons"):
        split_file(tmp_path / "b.csv", tmp_path / "out", 1, 1000)
    words = ["llava-serving", "batch", "split", str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "out"), "--rows"]
    statuses = []
    for rows in ("0", "1", "1"):
        monkeypatch.setattr("sys.argv", [*words, rows])
        statuses.append(main())
    assert statuses == [2, 0, 2]
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/c.jsonl: 2 parts in {tmp_path}/out\n"
    assert "c-000000.jsonl exists" in printed.err
