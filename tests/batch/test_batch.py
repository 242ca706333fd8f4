"""Files of requests through one engine: the entry script as Azure runs it, and the command, from outside."""

import base64
import csv
import json
import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.batch.file_names import name_in
from llava_serving.batch.row_reader import Defaults, Row, rows
from llava_serving.batch.run import Batch
from llava_serving.batch.run_files import input_files
from llava_serving.batch.saved_answers import SavedAnswers
from llava_serving.errors import BadRequest, InternalError, RequestError, Unavailable
from llava_serving.tools.batch import answer_all

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "batch" / "samples"
PICTURES = ROOT / "demo" / "pictures"
COMMAND = [str(Path(sys.executable).parent / "llava-serving"), "batch"]
DEFAULTS = Defaults("What is in the image?", {"max_new_tokens": 8}, 1_000_000)
MEANING = "the meaning of life is to be kind and to keep learning."
SHAPES = "a red circle, a blue cross, a yellow triangle"


def encoded(name: str) -> str:
    return base64.b64encode((PICTURES / name).read_bytes()).decode()


def run(command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_samples_by_one_command_on_the_demo_model(tmp_path: Path) -> None:
    done = run([*COMMAND, SAMPLES, "--output", tmp_path / "out"])
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "out" / "predictions.csv") == [
        ["pictures/digit.png", "0", "the digit 3", ""],
        ["pictures/easyvqa.png", "0", "a green circle", ""],
        ["pictures/shapes.png", "0", SHAPES, ""],
        ["questions.csv", "0", "the digit 3", ""],
        ["questions.csv", "1", "circle", ""],
        ["questions.csv", "2", MEANING, ""],
        ["requests.jsonl", "0", MEANING, ""],
        ["requests.jsonl", "1", SHAPES, ""],
        ["requests.jsonl", "2", "three", ""],
        ["requests.jsonl", "3", "red", ""],
    ]
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert answers[6]["answer"] == [{"0": MEANING}]
    assert answers[9]["answer"]["usage"]["completion_tokens"] > 0


def test_another_model_with_the_same_output_answers_itself(parts_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("input_string\nthe meaning of life is\n")
    command = [*COMMAND, tmp_path / "in.csv", "--output", tmp_path / "out"]
    other = tmp_path / "other"
    shutil.copytree(parts_dir, other)
    (other / "delta" / "config.json").write_text(
        json.dumps(json.loads((parts_dir / "delta" / "config.json").read_text()))
    )
    predictions = []
    for options in ([], ["--model-dir", parts_dir], ["--model-dir", other]):
        done = run([*command, *options], LLAVA_SELF_CHECK="false")
        assert done.returncode == 0, done.stderr
        predictions += [row[2] for row in table(tmp_path / "out" / "predictions.csv")]
    assert predictions[0] == MEANING
    assert predictions[1] not in ("", MEANING)
    assert len(list((tmp_path / "out" / "kept").iterdir())) == 3, "a config that was changed is of another model"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_ends_at_once_and_says_that_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    long = {"input_data": ["the"], "params": {"max_new_tokens": 400, "ignore_eos": True}}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(long)}\n" * 200)
    out = tmp_path / "out"
    process = subprocess.Popen(
        list(map(str, [*COMMAND, tmp_path / "in.jsonl", "--output", out])), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(kept_lines(out)) >= 1)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.endswith("llava-serving: stopped; the same command goes on from here\n")
    assert "Traceback" not in told
    assert len(kept_lines(out)) < 80, "as many had been let in"


def test_an_output_is_one_run_s_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "in.jsonl").write_text('{"input_data": ["a\\rb"], "params": {"max_new_tokens": 3}}\n' * 2)
    command = list(map(str, [*COMMAND, tmp_path / "in.jsonl", "--output", out]))
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: (out / "predictions.csv").exists())
    second = run(command)
    assert second.returncode == 2
    assert f"another run writes into {out}" in second.stderr
    assert first.wait(120) == 0
    rows = table(out / "predictions.csv")
    assert [row[:2] for row in rows] == [["in.jsonl", "0"], ["in.jsonl", "1"]]
    assert rows[0][2].startswith("a\nb"), "a bare carriage return would end the row"
    assert json.loads((out / "answers.jsonl").read_text().splitlines()[0])["answer"][0].startswith("a\rb")


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    missing = run([*COMMAND, tmp_path / "nothing", "--output", tmp_path / "out"])
    assert missing.returncode == 2
    assert f"there is no {tmp_path / 'nothing'}" in missing.stderr
    in_the_way = run([*COMMAND, SAMPLES, "--output", Path(__file__)])
    assert in_the_way.returncode == 2
    assert "File exists" in in_the_way.stderr
    (tmp_path / "full" / "answers.jsonl").mkdir(parents=True)
    in_the_way = run([*COMMAND, SAMPLES, "--output", tmp_path / "full"])
    assert in_the_way.returncode == 2
    assert "Is a directory" in in_the_way.stderr
    assert "Traceback" not in in_the_way.stderr
    refused = run([*COMMAND, SAMPLES, "--output", tmp_path / "out", "--parameters", "64"])
    assert refused.returncode == 2
    assert "LLAVA_BATCH_PARAMETERS" in refused.stderr
    assert "goes on" not in refused.stderr


def test_files_are_called_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a/x/p.jsonl", "b/x/p.jsonl", "b/out/answers.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]\n")
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("[]\n")
    out = tmp_path / "b" / "out"

    def names(*inputs: Path) -> list[str]:
        return [name for _, name in input_files(inputs, out)]

    assert names(tmp_path) == ["a/x/p.jsonl", "b/x/p.jsonl", "caf\\xe9.jsonl"]
    assert names(tmp_path / "a" / "x" / "p.jsonl") == ["p.jsonl"]
    assert names(tmp_path / "a" / "x", tmp_path / "b" / "x") == ["a/x/p.jsonl", "b/x/p.jsonl"]
    assert names(tmp_path / "b" / "x" / "p.jsonl", tmp_path / "a") == ["b/x/p.jsonl", "a/x/p.jsonl"]
    assert names(tmp_path / "a", tmp_path / "a" / "x" / "p.jsonl") == ["a/x/p.jsonl"], "each once"
    (tmp_path / "b" / "out" / "p.jsonl").write_text("[]\n")
    assert names(out) == ["p.jsonl"], "the output may be an input: what a run writes there is none"
    with pytest.raises(OSError, match="where the results go"):
        names(out / "answers.jsonl")
    (out / "p.jsonl").unlink()
    with pytest.raises(OSError, match="there is no file in"):
        names(out)


def test_a_folder_is_walked_through_its_links_once_and_what_is_no_file_is_told(tmp_path: Path) -> None:
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
    files = input_files([folder], tmp_path / "out")
    told = [(row.file, getattr(row.request, "code", row.request)) for file in files for row in rows(*file, DEFAULTS)]
    assert told == [
        ("gone.jsonl", "unreadable_input"),
        ("linked/x.jsonl", b"[1]"),
        ("loop.jsonl", "unreadable_input"),
        ("pipe.jsonl", "unreadable_input"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_costs_itself(tmp_path: Path, mode: int) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.jsonl").write_text("[1]\n")
    (tmp_path / "open.jsonl").write_text("[2]\n")
    (tmp_path / "locked").chmod(mode)
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from llava_serving.tools.batch import answer_all
from llava_serving.batch.run_files import input_files
from llava_serving.batch.row_reader import Defaults, rows
os.setuid(65534)
folder = pathlib.Path({str(tmp_path)!r})
for file in input_files([folder], folder / "out"):
    print(*[getattr(row.request, "code", row.request) for row in rows(*file, Defaults(None, {{}}, 1000))])
"""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    done = run([sys.executable, "-c", code])
    assert done.stdout.split() == ["unreadable_input", "b'[2]'"], done.stderr


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder of 1,000 requests of every kind, 53 of them rotten, and the result that is right: for a rotten one the
    code of its error."""
    folder = tmp_path_factory.mktemp("thousand") / "input"
    for name in ("lines", "pictures", "rotten", "tables"):
        (folder / name).mkdir(parents=True)
    (folder / "pictures" / "prompt.txt").write_text("What is in the image?\n")
    told: dict[str, list[list[str]]] = {}
    images = [("shapes.png", SHAPES), ("digit.png", "the digit 3"), ("easyvqa.png", "a green circle")]
    for number in range(92):
        source, answer = images[number % 3]
        name = f"pictures/{number:03}.png"
        (folder / name).write_bytes((PICTURES / source).read_bytes())
        told[name] = [[name, "0", answer, ""]]
    for number in range(12):
        name = f"lines/{number:02}.jsonl"
        told[name] = []
        with (folder / name).open("w") as file:
            for row in range(60):
                line, right, code = a_line(row, number)
                file.write(line + "\n")
                told[name].append([name, str(row), right, code])
    for number in range(3):
        name = f"tables/{number}.csv"
        told[name] = []
        with (folder / name).open("wb") as file:
            file.write(b"input_string,image\n")
            for row in range(60):
                cells, right, code = a_record(row)
                file.write(cells + b"\n")
                told[name].append([name, str(row), right, code])
    for name, content, code in (
        ("rotten/a.csv", b"\0\1\2garbage", "invalid_table"),
        ("rotten/b.jsonl", b"\x89PNG\r\n\x1a\n", "invalid_json"),
        ("rotten/c.xlsx", b"PK\3\4", "unsupported_input"),
        ("rotten/d.csv", b"question\nwhat?\n", "invalid_table"),
        ("rotten/e.csv", b"", "invalid_table"),
        ("rotten/f.png", b"not a picture", "no_prompt"),
        ("rotten/g.parquet", b"PAR1", "unsupported_input"),
    ):
        (folder / name).write_bytes(content)
        number = "" if code in ("invalid_table", "unsupported_input") else "0"
        told[name] = [[name, number, "", code]]
    # A PNG's first bytes are two lines.
    told["rotten/b.jsonl"] = [["rotten/b.jsonl", str(i), "", "invalid_json"] for i in range(2)]
    return folder, [row for name in sorted(told, key=lambda name: str(folder / name)) for row in told[name]]


def a_line(row: int, number: int) -> tuple[str, str, str]:
    """A line of JSON, the prediction that is right, the code of the error."""
    if row % 20 == 7:  # 5%
        rotten = [
            ("{not JSON", "invalid_json"),
            ('{"input_data": {"input_string": []}}', "invalid_request"),
            (json.dumps({"input_data": {"input_string": ["?"], "images": ["AAAA"]}}), "invalid_image"),
            (json.dumps({"input_data": {"input_string": ["a " * 3000]}}), "context_length_exceeded"),
            ('{"input_data": ["?"], "params": {"temprature": 1}}', "unknown_parameter"),
        ]
        line, code = rotten[number % len(rotten)]
        return line, "", code
    kinds: list[tuple[Any, str]] = [
        ({"input_data": {"input_string": ["the meaning of life is"]}}, MEANING),
        ({"input_data": {"input_string": ["What is in the image?"], "images": [encoded("shapes.png")]}}, SHAPES),
        (
            {"input_data": {"columns": ["image", "text"], "data": [[encoded("digit.png"), "What is in the image?"]]}},
            "the digit 3",
        ),
        ({"input_data": ["the meaning of life is"], "params": {"return_full_text": True}}, MEANING),
        (
            {"input_data": {"input_string": ["What is in the image?"] * 2, "images": [encoded("shapes.png")] * 2}},
            json.dumps([{"0": SHAPES}, {"0": SHAPES}]),
        ),
    ]
    body, right = kinds[row % len(kinds)]
    return json.dumps(body), right, ""


def a_record(row: int) -> tuple[bytes, str, str]:
    if row % 20 == 3:
        rotten = [
            (b"What is this?,../pictures/nothing.png", "invalid_image"),
            (b"one,two,three", "invalid_table"),
            (b"caf\xe9,", "invalid_table"),
        ]
        cells, code = rotten[row // 20]
        return cells, "", code
    if row % 2:
        return b"the meaning of life is,", MEANING, ""
    return b"What is in the image?," + encoded("easyvqa.png").encode(), "a green circle", ""


def codes(result: list[list[str]]) -> list[list[str]]:
    """Of errors the code alone."""
    return [[file, row, prediction, error.partition(":")[0]] for file, row, prediction, error in result]


def driver(folder: Path, output: Path) -> list[Any]:
    return [sys.executable, ROOT / "standin" / "batch_driver.py", ROOT / "batch" / "score.py", folder, output]


def test_a_thousand_requests_of_every_kind_with_rotten_ones(
    thousand: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder, right = thousand
    assert len(right) == 1000
    assert sum(1 for row in right if row[3]) == 53
    done = run(driver(folder, tmp_path / "predictions.csv"))
    assert done.returncode == 0, done.stderr
    # Names begin at the nearest mount, which is wherever this machine has one.
    result = [[file.partition("input/")[2], *rest] for file, *rest in table(tmp_path / "predictions.csv")]
    assert codes(result) == right
    assert "10 of 10 files read" in done.stderr


def test_killed_it_goes_on_where_it_was(thousand: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    folder, right = thousand
    out = tmp_path / "out"
    command = list(map(str, [*COMMAND, folder, "--output", out]))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: len(kept_lines(out)) >= 100)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = kept_lines(out)
    assert 100 <= len(before) < 947
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert codes(table(out / "predictions.csv")) == right
    after = kept_lines(out)
    places = [(line["file"], line["row"]) for line in after]
    assert len(set(places)) == len(places) == 947, "nothing was answered twice"


def kept_lines(out: Path) -> list[dict[str, Any]]:
    lines = [line for path in (out / "kept").rglob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answered(batch: Batch, *files: tuple[Path, str]) -> list[tuple[Any, ...]]:
    return [row.columns() for row in batch.run(files)]


@pytest.fixture
def lines(tmp_path: Path) -> list[tuple[Path, str]]:
    """Three files of three requests; the text of each is its place."""
    files = []
    for name in "abc":
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'["{name}{row}"]\n' for row in range(3)))
        files.append((path, path.name))
    return files


def test_rows_of_all_files_are_under_way_together_and_come_in_order(lines: list[tuple[Path, str]]) -> None:
    together = threading.Barrier(9, timeout=30)

    def answer(body: bytes) -> Any:
        together.wait()
        time.sleep(random.random() / 20)
        return json.loads(body)

    told = answered(Batch(answer, 9, DEFAULTS), *lines)
    assert [row[2] for row in told] == [f"{name}{row}" for name in "abc" for row in range(3)]


def test_a_failure_of_the_service_is_told_and_tried_again_by_the_next_run(
    lines: list[tuple[Path, str]], tmp_path: Path
) -> None:
    asked: list[bytes] = []

    def failing(body: bytes) -> Any:
        if body == b'["b1"]':
            raise InternalError("generation_failed", "the step failed")
        if body == b'["b2"]':
            raise ZeroDivisionError
        return json.loads(body)

    def working(body: bytes) -> Any:
        asked.append(body)
        return json.loads(body)

    told = answered(Batch(failing, 2, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)
    assert [row[3] for row in told if row[3]] == [
        "generation_failed: the step failed",
        "internal_error: the service failed on this row; its log says why",
    ]
    told = answered(Batch(working, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)
    assert [row[2] for row in told] == [f"{name}{row}" for name in "abc" for row in range(3)]
    assert asked == [b'["b1"]', b'["b2"]']


def test_a_shutdown_is_no_row_s_error(lines: list[tuple[Path, str]], tmp_path: Path) -> None:
    def answer(body: bytes) -> Any:
        if body == b'["b1"]':
            raise Unavailable("draining", "the service is being shut down")
        return json.loads(body)

    batch, told = Batch(answer, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), []
    with pytest.raises(Unavailable):
        told += [row.columns() for row in batch.run(lines)]
    assert all(line["row"] != 1 or line["file"] != "b.jsonl" for line in kept_lines(tmp_path))


def test_another_request_in_the_same_place_is_asked(lines: list[tuple[Path, str]], tmp_path: Path) -> None:
    assert answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), lines[0])[1][2] == "a1"
    lines[0][0].write_text('["a0"]\n["other"]\n["a2"]\n')
    assert answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), lines[0])[1][2] == "other"


def test_what_is_wrong_is_said_as_it_is_now(tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"
    picture.write_bytes(b"rotten")
    codes = []
    for prompt in (None, "What is this?"):
        for most in (1, 1_000):
            batch = Batch(refuse, 1, Defaults(prompt, {}, most), SavedAnswers(tmp_path / "kept"))
            codes += [row[3].partition(":")[0] for row in answered(batch, (picture, picture.name))]
    assert codes == ["no_prompt", "no_prompt", "image_too_large", "invalid_image"]


def refuse(_: bytes) -> Any:
    raise BadRequest("invalid_image", "no picture")


def test_what_was_answered_is_not_asked_again_by_the_same_process(
    lines: list[tuple[Path, str]], tmp_path: Path
) -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> Any:
        asked.append(body)
        return json.loads(body)

    batch = Batch(answer, 1, DEFAULTS, SavedAnswers(tmp_path / "kept"))
    assert answered(batch, *lines) == answered(batch, *lines)
    assert len(asked) == 9


def test_a_file_is_closed_now_and_then_and_all_are_read(
    lines: list[tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_serving.batch.saved_answers.FILE_SECONDS", 0.0)
    answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)
    assert len(list((tmp_path / "kept").iterdir())) == 9
    told = answered(Batch(refuse, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)
    assert [row[2] for row in told] == [f"{name}{row}" for name in "abc" for row in range(3)]


def test_answers_come_also_where_they_cannot_be_kept(
    lines: list[tuple[Path, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    told = answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "file" / "kept")), *lines)
    assert [row[3] for row in told] == [None] * 9
    assert caplog.text.count("answers are not kept") == 1


def test_a_disk_that_is_full_is_told_once(
    lines: list[tuple[Path, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = SavedAnswers(tmp_path / "kept")
    assert len(answered(Batch(json.loads, 1, DEFAULTS, kept), lines[0])) == 3
    kept._file = open("/dev/full", "w")  # noqa: SIM115
    told = answered(Batch(json.loads, 1, DEFAULTS, kept), *lines[1:])
    assert [row[3] for row in told] == [None] * 6
    assert caplog.text.count("answers are not kept") == 1


def test_results_that_cannot_be_written_stop_what_is_under_way(lines: list[tuple[Path, str]]) -> None:
    stopped = threading.Event()

    class Full:
        def write(self, rows: Iterator[Any]) -> Any:
            next(rows)
            raise OSError("No space left on device")

    def answer(body: bytes) -> Any:
        assert body == b'["a0"]' or stopped.wait(60)
        return json.loads(body)

    batch, full = Batch(answer, 4, DEFAULTS, stop=stopped.set), Full()
    with pytest.raises(OSError, match="No space left"):
        answer_all(batch, lines, full)  # type: ignore[arg-type]
    assert stopped.is_set()


def test_what_is_kept_is_closed_at_the_end(lines: list[tuple[Path, str]], tmp_path: Path) -> None:
    kept = SavedAnswers(tmp_path / "kept")
    for asked in (json.loads, refuse):
        assert answered(Batch(asked, 1, DEFAULTS, kept), *lines)[0][2] == "a0"
        opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        assert not [path for path in opened if path.startswith(str(tmp_path))]


def test_rows_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, answers = [0], threading.Event()

    def many(path: Path, name: str, defaults: Defaults) -> Iterator[Row]:
        for number in range(1000):
            taken[0] += 1
            yield Row(name, number, b"[1]")

    def answer(body: bytes) -> Any:
        assert answers.wait(60)
        return json.loads(body)

    monkeypatch.setattr("llava_serving.batch.run.rows", many)
    told = Batch(answer, 2, DEFAULTS).run([(Path("a"), "a")])
    threading.Timer(0.5, answers.set).start()
    next(told)
    assert taken[0] <= 9
    assert sum(1 for _ in told) == 999


def test_waiting_requests_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_serving.batch.run.MOST_BYTES", 100)
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'["{"x" * length}"]\n' for length in (40, 40, 90, 300, 10)))
    waiting, most = [0], [0]
    lock = threading.Lock()

    def answer(body: bytes) -> Any:
        with lock:
            waiting[0] += len(body)
            most[0] = max(most[0], waiting[0])
        time.sleep(0.05)
        with lock:
            waiting[0] -= len(body)
        return json.loads(body)

    assert [len(row[2]) for row in answered(Batch(answer, 8, DEFAULTS), (path, "a"))] == [40, 40, 90, 300, 10]
    assert most[0] == 304  # one that is larger by itself goes alone


def test_a_line_that_was_cut_by_a_kill_is_not_read(lines: list[tuple[Path, str]], tmp_path: Path) -> None:
    answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)
    (path,) = (tmp_path / "kept").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    assert [row[2] for row in answered(Batch(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *lines)] == [
        f"{name}{row}" for name in "abc" for row in range(3)
    ]


def read(path: Path, defaults: Defaults = DEFAULTS) -> list[Any]:
    """The bodies, or the codes of what is wrong."""
    return [
        row.request.code if isinstance(row.request, RequestError) else json.loads(row.request)
        for row in rows(path, path.name, defaults)
    ]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)


@given(texts=st.lists(TEXT, max_size=8), extra=st.booleans())
def test_a_csv_says_what_was_written_into_it(texts: list[str], extra: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "input_string"] if extra else ["input_string"])
            writer.writerows([["7", text] if extra else [text] for text in texts])
        assert [body["input_data"]["input_string"] for body in read(path)] == [[text] for text in texts]


@given(values=st.lists(st.dictionaries(st.text(string.ascii_letters), TEXT), max_size=8), blanks=st.booleans())
def test_lines_are_taken_as_they_are(values: list[Any], blanks: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        path.write_text(("\n\n" if blanks else "\n").join(json.dumps(value) for value in values), "utf-8")
        assert read(path) == values


def test_a_line_that_is_too_long_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"a":1}\n"' + b"x" * 5_000_000 + b'"\n{"b":2}\n' + b"y" * 2_000_000)
    assert read(path) == [{"a": 1}, "body_too_large", {"b": 2}, "body_too_large"]
    exact = json.dumps("z" * (DEFAULTS.max_bytes - 2))
    path.write_text(f'{exact}\n{{"b":2}}\n')
    assert read(path) == [json.loads(exact), {"b": 2}]


@given(texts=st.lists(TEXT.filter(lambda text: '"' not in text), min_size=1, max_size=8), data=st.data())
def test_a_quotation_mark_that_nothing_closes_costs_its_line(texts: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(texts)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input_string", "id"])
            writer.writerows([text, "7"] for text in texts[:place])
            file.write('"Is it 5 wide?,8\r\n')
            for text in texts[place:]:
                csv.writer(file, quoting=csv.QUOTE_NONE, escapechar="\\").writerow([re.sub(r"\W", "x", text), "7"])
        told = [body if isinstance(body, str) else body["input_data"]["input_string"][0] for body in read(path)]
    assert told == texts[:place] + ["invalid_table"] + [re.sub(r"\W", "x", text) for text in texts[place:]]


@pytest.mark.parametrize("most", [1_000_000, 20_000])  # the second makes every mistake one of a record too long
def test_quotation_marks_that_pair_up_wrongly_cost_their_lines_alone(most: int, tmp_path: Path) -> None:
    """Each such line closes what the one before has opened, and opens another: every mistake takes along the rest."""
    path = tmp_path / "table.csv"
    wrong = ['a","\n' if number % 10 else "good,1\n" for number in range(60_000)]
    path.write_text("input_string,id\nfirst,1\n" + "".join(wrong))
    told = [body if isinstance(body, str) else "good" for body in read(path, Defaults("?", {}, most))]
    assert told == ["good"] + ["invalid_table" if number % 10 else "good" for number in range(60_000)]


@pytest.mark.parametrize("mistakes", [1, 45, 200])
def test_records_of_several_lines_survive_mistakes_before_them(mistakes: int, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("input_string,id\n" + 'a","\n' * mistakes + 'x"y,1\n' + '"line one\nline two",2\n' * 1000)
    told = [body["input_data"]["input_string"][0] for body in read(path) if not isinstance(body, str)]
    assert told.count("line one\nline two") >= 999
    assert not [text for text in told if text in ("line one", 'line two"')]


def test_a_line_of_a_csv_that_is_too_long_costs_itself_and_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w") as file:
        file.write("input_string\nfirst\n")
        for _ in range(50):
            file.write("x" * 1_000_000)
        file.write("\nsecond\n")
    tracemalloc.start()
    told = read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    texts = [body if isinstance(body, str) else body["input_data"]["input_string"][0] for body in told]
    assert texts == ["first", "invalid_table", "second"]
    assert most < 20_000_000


def test_a_picture_in_a_csv_may_be_large(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"input_string, image\n?,{'A' * 200_000}\n")
    (body,) = read(path)
    assert body["input_data"]["images"] == ["A" * 200_000]


def test_a_cell_that_no_path_can_be_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    path = tmp_path / "table.csv"
    path.write_bytes(b'input_string,image\n?,a\0.png\n?,circle.png\n?,gone.tiff\n?,\n?,"data:image/x.y;base64,AAAA"\n')
    *wrong, alone, uri = read(path)
    assert wrong == ["invalid_image"] * 3
    assert alone["input_data"]["input_string"] == ["?"]
    assert uri["input_data"]["images"] == ["data:image/x.y;base64,AAAA"]


def test_a_picture_of_a_csv_is_read_from_its_folder_and_no_other(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    (inside / "deep").mkdir(parents=True)
    for path in (inside / "deep" / "digit.png", outside):
        path.write_bytes((PICTURES / "digit.png").read_bytes())
    (inside / "link.png").symlink_to(outside)
    table = inside / "table.csv"
    table.write_text(
        f"input_string,image\n?,deep/digit.png\n?,../secret.png\n?,{outside}\n?,link.png\n?,no.png\n?,AAAA\n"
    )
    first, *others, last = read(table)
    assert first["input_data"]["images"] == [encoded("digit.png")]
    assert others == ["invalid_image"] * 4
    assert last["input_data"]["images"] == ["AAAA"], "what is no file's name is taken for base64"


def test_a_prompt_beside_a_picture_goes_before_the_deployment_s(tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"
    picture.write_bytes((PICTURES / "digit.png").read_bytes())
    (body,) = read(picture)
    assert body["input_data"]["input_string"] == ["What is in the image?"]
    assert body["input_data"]["parameters"] == {"max_new_tokens": 8}
    (tmp_path / "prompt.txt").write_text("Which digit is it?\n")
    (body,) = read(picture)
    assert body["input_data"]["input_string"] == ["Which digit is it?"]
    assert read(tmp_path / "prompt.txt") == []
    (tmp_path / "prompt.txt").write_text("\n")
    assert read(picture)[0]["input_data"]["input_string"] == ["What is in the image?"]
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe?")
    assert read(picture) == ["no_prompt"]
    (tmp_path / "prompt.txt").unlink()
    (tmp_path / "prompt.txt").mkdir()
    assert read(picture) == ["no_prompt"]
    assert read(tmp_path / "gone.jsonl") == ["unreadable_input"]
    (gone,) = rows(tmp_path / "gone" / "gone.png", "gone.png", DEFAULTS)
    assert (gone.number, getattr(gone.request, "code", "")) == (0, "invalid_image"), "a picture is a row, broken or not"


def test_a_name_that_is_no_utf_8_is_told_in_utf_8(tmp_path: Path) -> None:
    picture = tmp_path / os.fsdecode(b"caf\xe9.png")
    picture.write_bytes(b"too large")
    batch = Batch(refuse, 1, Defaults("?", {}, 1))
    (told,) = answered(batch, (picture, name_in(picture, tmp_path)))
    assert told[0] == "caf\\xe9.png"
    assert told[3].encode() == b"image_too_large: caf\\xe9.png has more than 1 bytes"


def test_names_are_the_same_wherever_an_input_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    for mount in ("/mnt/azureml/cr/j/1/cap/data-capability/wd/INPUT_a", "/mnt/other"):
        monkeypatch.setattr(os.path, "ismount", lambda path, mount=mount: str(path) in ("/", mount))
        assert name_in(Path(mount) / "deep" / "a.csv", None) == "deep/a.csv"
    assert name_in(Path("/data/in/a.csv"), Path("/data")) == "in/a.csv"
