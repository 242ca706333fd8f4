"""Which files a run reads, and their names in the results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batch_cases import DEFAULTS, ROOT, read_csv, refuse, run_columns

from llava_serving.batch.input_files import find_input_files
from llava_serving.batch.input_names import input_name
from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.result_files import ResultFiles
from llava_serving.batch.row_reader import read_input_rows
from llava_serving.batch.runner import BatchRunner


def test_names_are_paths_below_the_input_folder_or_the_common_parent_of_several_inputs(tmp_path: Path) -> None:
    for name in ("a/x/p.jsonl", "b/x/p.jsonl", "b/out/answers.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]\n")
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("[]\n")
    output = tmp_path / "b" / "out"

    def names(*inputs: Path) -> list[str]:
        return [name for _, name in find_input_files(inputs, output)]

    assert names(tmp_path) == ["a/x/p.jsonl", "b/x/p.jsonl", "caf\\xe9.jsonl"]
    assert names(tmp_path / "a" / "x" / "p.jsonl") == ["p.jsonl"]
    assert names(tmp_path / "a" / "x", tmp_path / "b" / "x") == ["a/x/p.jsonl", "b/x/p.jsonl"]
    assert names(tmp_path / "b" / "x" / "p.jsonl", tmp_path / "a") == ["b/x/p.jsonl", "a/x/p.jsonl"]
    assert names(tmp_path / "a", tmp_path / "a" / "x" / "p.jsonl") == ["a/x/p.jsonl"], "each file once"
    (tmp_path / "b" / "out" / "p.jsonl").write_text("[]\n")
    assert names(output) == ["p.jsonl"], "the output folder may be an input, without the result files in it"
    with pytest.raises(OSError, match="where the results go"):
        names(output / "answers.jsonl")
    (output / "p.jsonl").unlink()
    with pytest.raises(OSError, match="there is no file in"):
        names(output)


def test_each_linked_folder_is_read_once_and_unreadable_files_are_errors(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "in"
    real.mkdir()
    folder.mkdir()
    (real / "x.jsonl").write_text("[1]\n")
    (folder / "linked").symlink_to(real)
    (folder / "linked too").symlink_to(real)
    (real / "back").symlink_to(folder)
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    files = find_input_files([folder], tmp_path / "out")
    requests = [
        (row.file, getattr(row.request, "code", row.request))
        for file in files
        for row in read_input_rows(*file, DEFAULTS)
    ]
    assert requests == [
        ("gone.jsonl", "unreadable_input"),
        ("linked/x.jsonl", b"[1]"),
        ("loop.jsonl", "unreadable_input"),
        ("pipe.jsonl", "unreadable_input"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_without_read_permission_is_an_error_and_the_other_files_are_read(tmp_path: Path, mode: int) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.jsonl").write_text("[1]\n")
    (tmp_path / "open.jsonl").write_text("[2]\n")
    (tmp_path / "locked").chmod(mode)
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from llava_serving.batch.input_files import find_input_files
from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.row_reader import read_input_rows
os.setuid(65534)
folder = pathlib.Path({str(tmp_path)!r})
for file in find_input_files([folder], folder / "out"):
    print(*[getattr(row.request, "code", row.request) for row in read_input_rows(*file, RowDefaults(None, {{}}, 1000))])
"""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["unreadable_input", "b'[2]'"], done.stderr


def test_the_results_are_utf_8_even_if_a_file_name_is_not(tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    image.write_bytes(b"too large")
    runner = BatchRunner(refuse, 1, RowDefaults("?", {}, 1))
    (columns,) = run_columns(runner, (image, input_name(image, tmp_path)))
    assert columns[0] == "caf\\xe9.png"
    assert columns[3].encode() == b"image_too_large: caf\\xe9.png has more than 1 bytes"


def test_a_name_with_a_line_break_is_one_record_of_the_results_and_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a\n2026-01-01 forged: 'line'\r\x1b[31m.csv"
    (tmp_path / name).write_text('input_string,"x\nforged"\n?,1\n')

    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    runner = BatchRunner(fail, 1, DEFAULTS)
    output = tmp_path / "out"
    output.mkdir()
    ResultFiles(output).write(runner.run([(tmp_path / name, name)]))
    (record,) = read_csv(output / "predictions.csv")
    assert record[0] == name.replace("\r", "\n")
    assert len((output / "answers.jsonl").read_text().splitlines()) == 1
    assert len(caplog.messages) == 2, "a warning about the column x, and the failed row"
    assert all(message.isprintable() for message in caplog.messages)


def test_names_do_not_depend_on_the_mount_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for mount in ("/mnt/azureml/cr/j/1/cap/data-capability/wd/INPUT_a", "/mnt/other"):
        monkeypatch.setattr(os.path, "ismount", lambda path, mount=mount: str(path) in ("/", mount))
        assert input_name(Path(mount) / "deep" / "a.csv", None) == "deep/a.csv"
    assert input_name(Path("/data/in/a.csv"), Path("/data")) == "in/a.csv"
